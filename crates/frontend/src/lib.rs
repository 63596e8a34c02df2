//! Lowers a Dockerfile to an LLB graph and an image configuration
