"""Coverage-guided fuzzing of the graph engine."""
