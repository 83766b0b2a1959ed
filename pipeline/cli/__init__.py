"""The command line: which run, which stages, what the user sees."""
