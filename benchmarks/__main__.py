"""`python -m benchmarks`: the end-to-end figures. The parts alone: benchmarks.decode, .functions and .upsert."""

from benchmarks.pipelines import main

main()
