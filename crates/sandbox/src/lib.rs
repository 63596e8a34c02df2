//! Runs one process in a root: namespaces, mounts, network, capabilities, seccomp
