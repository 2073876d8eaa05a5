"""Training, averaging, evaluating and probing: from a configuration to records."""
