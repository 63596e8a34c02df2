//! The distribution client: resolve, fetch, push, auth, mirrors, retry
