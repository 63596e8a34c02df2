//! Generic graph executor: an I/O-free scheduler with seeded simulation
