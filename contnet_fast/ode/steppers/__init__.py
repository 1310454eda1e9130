"""Steps of a solve: on a fixed grid, adaptive on the host or the device, and adaptive for each sample of a batch."""
