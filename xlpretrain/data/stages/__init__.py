"""The data of runs whose batch size, sample length or mixture changes from stage to stage. Torch-free."""
