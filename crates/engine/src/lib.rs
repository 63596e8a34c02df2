//! Binds graph, solver, store, sandbox and registry into builds
