"""The evaluate stage: protocols on labelled sets, leaks between them, several runs together."""
