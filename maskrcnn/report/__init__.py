"""Where a model errs, and how runs differ: pages for a browser, each one file that needs nothing else."""
