"""Development tools that no bundle carries: command line, preparation, checks, phantom, experiments, benchmarks."""
