"""A template's function as the `function` table of a pipeline: AWS::Serverless::Function and AWS::Lambda::Function.

Defaults are AWS's (SAM and CloudFormation resource reference), which are not headrace's: a timeout of 3 seconds.
Not here: what calls the function (`engine.sam.events`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.sam.intrinsics import NO_VALUE, Malformed, Unresolved, intrinsic
from engine.sam.properties import Properties, text_of, whole

TIMEOUT_SECONDS = 3
MEMORY_SIZE_MB = 128

BOOTSTRAP = "bootstrap"

#: Whole numbers, and their keys.
SETTINGS = {
    "Timeout": "timeout",
    "MemorySize": "memory_size",
    "ReservedConcurrentExecutions": "reserved_concurrency",
}

_PYTHON = re.compile(r"python3\.\d+")

_HONOURED = (
    *("Runtime", "Handler", "CodeUri", "Code", "Environment", "FunctionName", "Events", "PackageType"),
    *SETTINGS,
)

_PERMISSIONS = "permissions are AWS's; a handler has the credentials of headrace's own environment"
_DEPLOYMENT = "is about deploying to AWS"

IGNORED = {
    "Architectures": "environments run on this machine's processor",
    "AssumeRolePolicyDocument": _PERMISSIONS,
    "AutoPublishAlias": _DEPLOYMENT,
    "AutoPublishAliasAllProperties": _DEPLOYMENT,
    "AutoPublishCodeSha256": _DEPLOYMENT,
    "CodeSigningConfigArn": _DEPLOYMENT,
    "DeploymentPreference": _DEPLOYMENT,
    "Description": "is for people",
    "EphemeralStorage": "temporary files go where this machine has them",
    "LoggingConfig": "logs go where headrace's go",
    "PermissionsBoundary": _PERMISSIONS,
    "Policies": _PERMISSIONS,
    "PropagateTags": "is for AWS's accounts",
    "ProvisionedConcurrencyConfig": "environments are started on demand and kept warm",
    "PublishToLatestPublished": _DEPLOYMENT,
    "RecursiveLoop": "loops are not looked for",
    "Role": _PERMISSIONS,
    "RolePath": _PERMISSIONS,
    "RuntimeManagementConfig": "environments run headrace's own Python",
    "SnapStart": "environments start without snapshots",
    "Tags": "is for AWS's accounts",
    "Tracing": "no traces are sent to X-Ray",
    "VersionDeletionPolicy": _DEPLOYMENT,
    "VersionDescription": _DEPLOYMENT,
    "VpcConfig": "environments use this machine's network",
}

UNSUPPORTED = {
    "CapacityProviderConfig": "environments are processes of this machine",
    "DeadLetterQueue": "functions are not called asynchronously",
    "DeadLetterConfig": "functions are not called asynchronously",
    "DurableConfig": "durable executions are not carried out",
    "EventInvokeConfig": "functions are not called asynchronously",
    "FileSystemConfigs": "no file system is mounted",
    "FunctionUrlConfig": "no function URL is served",
    "ImageConfig": "container images are not run",
    "ImageUri": "container images are not run; give CodeUri, a local directory",
    "InlineCode": "code has to be a file in CodeUri, a local directory",
    "KmsKeyArn": "nothing is encrypted with KMS",
    "Layers": "layers are not unpacked; install their modules, or put them into CodeUri",
    "TenancyConfig": "invocations are not kept apart by tenant",
}


@dataclass(frozen=True, slots=True)
class Function:
    """What is the same for all pipelines of a function; ``settings`` is their `function` table without a kind."""

    logical_id: str
    properties: Properties
    settings: Mapping[str, object]
    can_run: bool  #: false where its code cannot be had; why has been noted


def read(logical_id: str, kind: str, properties: Properties, directory: Path, *, is_used: bool) -> Function:
    """Read one function. ``directory`` is the template's; one that nothing calls needs no code."""
    if not is_used:
        return Function(logical_id, properties, {}, can_run=False)
    properties.account_for(_HONOURED, IGNORED, UNSUPPORTED, kind)
    settings: dict[str, object] = {
        "name": properties.take("FunctionName", text_of) or logical_id,
        "timeout": TIMEOUT_SECONDS,
        "memory_size": MEMORY_SIZE_MB,
    }
    for name, key in SETTINGS.items():
        value = properties.take(name, whole)
        if value is not None:
            settings[key] = value
    environment = _environment(properties)
    if environment:
        settings["environment"] = environment
    root = _root(properties, "CodeUri" if kind == "AWS::Serverless::Function" else "Code", directory)
    if root is not None:
        settings["root"] = str(root)
    runs = _runtime(properties, root, settings)
    return Function(logical_id, properties, settings, can_run=runs and root is not None)


def _environment(properties: Properties) -> dict[str, str]:
    environment = properties.below("Environment")
    environment.account_for(("Variables",), {}, {}, "Environment")
    variables = environment.below("Variables")
    read = {name: variables.take(name, text_of) for name in variables.names}
    return {name: value for name, value in read.items() if value is not None}


def _root(properties: Properties, name: str, directory: Path) -> Path | None:
    """The directory of a function's code; None with a note where there is none."""
    at = properties.place(name)
    if "PackageType" in properties.names and properties.take("PackageType", text_of) != "Zip":
        properties.findings.unsupported(properties.place("PackageType"), "container images are not run")
        return None
    raw = properties.raw(name)
    if raw is NO_VALUE:
        if {"ImageUri", "InlineCode"} & set(properties.names):
            return None
        raw = "."  # as `sam build` takes it
    if isinstance(raw, dict) and intrinsic(raw) is None:
        parts = ", ".join(sorted(map(str, raw)))
        properties.findings.unsupported(at, f"code has to be a local directory, not {parts}")
        return None
    try:
        text = text_of(properties.resolver.resolve(raw))
    except (Malformed, Unresolved) as error:
        properties.note(name, error)
        return None
    if "://" in text:
        properties.findings.unsupported(at, f"{text.split('://')[0]}:// is not fetched; give a local directory")
        return None
    root = (directory / text).resolve()
    if root.is_file():
        properties.findings.unsupported(at, f"{text} is a file; archives are not unpacked, give their directory")
        return None
    if not root.is_dir():
        properties.findings.fault(at, f"there is no directory {text} beside the template")
        return None
    return root


def _runtime(properties: Properties, root: Path | None, settings: dict[str, object]) -> bool:
    """Put in how the function is run; whether it can be."""
    if {"ImageUri", "ImageConfig"} & set(properties.names) or properties.raw("PackageType") == "Image":
        return False
    runtime = properties.take("Runtime", text_of)
    handler = properties.take("Handler", text_of)
    at = properties.place("Runtime")
    if runtime is None:
        if properties.raw("Runtime") is NO_VALUE:
            properties.findings.fault(at, "is missing; valid are python3.x and provided.*")
        return False
    if handler is not None and _PYTHON.fullmatch(runtime):
        # A path is as good as a package (AWS's Python runtime takes both).
        module, _, name = handler.rpartition(".")
        handler = f"{module.replace('/', '.')}.{name}"
    if handler is not None:
        settings["handler"] = handler
    if _PYTHON.fullmatch(runtime):
        if handler is None and properties.raw("Handler") is NO_VALUE:
            properties.findings.fault(properties.place("Handler"), "is missing; valid is MODULE.FUNCTION")
        settings["runtime"] = "python"
        return handler is not None
    if runtime == "provided" or runtime.startswith("provided."):
        settings["runtime"] = "provided"
        settings["command"] = [f"./{BOOTSTRAP}"]
        if root is not None and not (root / BOOTSTRAP).is_file():
            properties.findings.fault(at, f"{runtime} needs a program named {BOOTSTRAP} in {root}")
            return False
        if root is not None and not os.access(root / BOOTSTRAP, os.X_OK):
            properties.findings.fault(at, f"{root / BOOTSTRAP} may not be executed; chmod +x it")
            return False
        return True
    properties.findings.unsupported(at, f"{runtime} is not run; valid are python3.x and provided.*")
    return False
