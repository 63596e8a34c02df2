//! File trees: path resolution, mounts, walk, copy, checksum, layer tar apply and diff
