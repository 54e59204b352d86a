"""Makes ``jars.json``: ``python -m connectors.kafka.broker.pin 4.1.2 > jars.json``.

A tool for whoever moves the embedded broker to another Kafka; it needs the network, and what it prints is to be
reviewed like code. Nothing at run time imports it: there the pinned list alone decides.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from connectors.kafka.broker.jars import maven_context

UNUSED = {
    "com.fasterxml.jackson.dataformat:jackson-dataformat-csv": "nothing refers to it",
    "com.fasterxml.jackson.dataformat:jackson-dataformat-yaml": "the container's start script, YAML logging",
    "com.fasterxml.jackson.datatype:jackson-datatype-jdk8": "nothing refers to it",
    "commons-beanutils:commons-beanutils": "form validation; Kafka takes the check of addresses only",
    "commons-collections:commons-collections": "as commons-beanutils",
    "commons-digester:commons-digester": "as commons-beanutils",
    "commons-logging:commons-logging": "as commons-beanutils",
    "org.apache.kafka:kafka-tools-api": "a tool that dumps log segments",
    "org.jspecify:jspecify": "annotations for compilers",
    "org.scala-lang:scala-reflect": "compile-time macros",
    "org.yaml:snakeyaml": "as jackson-dataformat-yaml",
}
"""What Kafka declares and a broker never loads, by the references in the class files of all the others."""


def pinned(kafka: str) -> dict[str, object]:
    """Resolve Kafka with all that it needs at run time, and hash every jar."""
    with tempfile.TemporaryDirectory() as directory:
        context = maven_context(Path(directory))
        wanted = context.create_dependency(f"org.apache.kafka:kafka_2.13:{kafka}")
        inputs, transitive = context.resolver.resolve([wanted])
        artifacts = [dependency.artifact for dependency in [*inputs, *transitive]]
        log4j = next(artifact.version for artifact in artifacts if artifact.artifactId == "log4j-core")
        # Kafka logs through slf4j and leaves the choice of its backend to the distribution.
        binding = f"org.apache.logging.log4j:log4j-slf4j-impl:{log4j}"
        artifacts.append(context.create_dependency(binding).artifact)
        jars = []
        for artifact in artifacts:
            if f"{artifact.groupId}:{artifact.artifactId}" in UNUSED:
                continue
            content = artifact.resolve().read_bytes()
            coordinate = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
            jars.append({"jar": coordinate, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return {"kafka": kafka, "jars": sorted(jars, key=lambda jar: str(jar["jar"]))}


if __name__ == "__main__":
    json.dump(pinned(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
