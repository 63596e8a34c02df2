//! The Dockerfile language: parser, stages, expansion, ignore patterns, lint
