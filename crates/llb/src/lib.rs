//! The build graph: ops, vertices, canonical digests, BuildKit's LLB wire form
