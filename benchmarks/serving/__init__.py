"""What serving costs: fronts of discretizations, exported files, many threads, memory over many requests."""
