//! The state directory: blobs, layers, records, leases, garbage collection
