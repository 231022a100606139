"""The report of studies: one HTML file that needs nothing else."""
