"""`python -m maskrcnn.benchmark`."""

from maskrcnn.benchmark import main

if __name__ == "__main__":
    main()
