"""The entry as a module: python -m pipeline [STAGE] ..."""

from pipeline.run import program

if __name__ == "__main__":
    program()
