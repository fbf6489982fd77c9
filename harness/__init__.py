"""Real servers and our own programs as child processes: for the demo, the tests and the benchmarks."""
