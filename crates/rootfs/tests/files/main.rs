//! Files in trees: file operations, checksums, archives, hostile paths, and all of it without privileges.

mod checksum;
mod copies;
mod copy;
mod make;
mod rootless;
mod support;
mod unpack;
