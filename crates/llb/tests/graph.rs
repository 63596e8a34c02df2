//! Graphs through the public interface: identity, wire form, hostile definitions.

use llb::{
    Action, CacheSharing, Copy, CopyMode, Draft, ExecMount, ExecSpec, FileSpec, Graph,
    GraphBuilder, LinuxResources, LlbError, Location, MakeDirectory, MakeFile, MergeOp, Meta,
    Metadata, MountKind, Op, Output, Owner, ProgressGroup, ProxyEnv, Range, Remove, SecretEnv,
    SecretFile, SecretMount, SourceFile, SourceOp, SshMount, Symlink, UserRef,
};
use oci::{Digest, Platform};
use std::sync::Arc;

fn platform(os: &str, architecture: &str, variant: &str) -> Arc<Platform> {
    Arc::new(Platform::new(os, architecture, variant))
}

fn source(builder: &mut GraphBuilder, identifier: &str) -> Output {
    let source = SourceOp {
        identifier: identifier.to_owned(),
        ..SourceOp::default()
    };
    builder.add(Draft::new(Op::Source(source), Vec::new()))
}

fn image(builder: &mut GraphBuilder, identifier: &str) -> Output {
    let output = source(builder, identifier);
    builder.draft_mut(output).platform = Some(platform("linux", "amd64", ""));
    output
}

fn exec(root: Output, args: &[&str]) -> ExecSpec {
    ExecSpec {
        root: Some(root),
        meta: Meta {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            cwd: "/".to_owned(),
            ..Meta::default()
        },
        ..ExecSpec::default()
    }
}

/// A graph that holds every kind of op and nearly every field.
fn everything() -> Graph {
    let mut builder = GraphBuilder::default();
    let file = builder.source(SourceFile {
        filename: "Dockerfile".to_owned(),
        language: "Dockerfile".to_owned(),
        data: b"FROM x\n".as_slice().into(),
        definition: None,
    });
    let base = image(
        &mut builder,
        "docker-image://docker.io/library/busybox:latest",
    );
    let local = source(&mut builder, "local://context");
    let mut files = FileSpec::new(Some(base));
    files.copy(
        Some(local),
        Copy {
            source: "/a".to_owned(),
            dest: "/b/".to_owned(),
            owner: Some(Owner {
                user: Some(UserRef::Name {
                    name: "me".to_owned(),
                    input: None,
                }),
                group: Some(UserRef::Id(0)),
            }),
            mode: CopyMode::Symbolic("u=rw".to_owned()),
            follow_symlink: true,
            include_patterns: vec!["*.rs".to_owned()],
            timestamp: Some(5),
            ..Copy::default()
        },
    );
    files.action(Action::MakeDirectory(MakeDirectory {
        path: "/d".to_owned(),
        mode: 0o755,
        make_parents: true,
        ..MakeDirectory::default()
    }));
    files.action(Action::MakeFile(MakeFile {
        path: "/f".to_owned(),
        mode: 0o644,
        data: vec![b'x'; 300],
        ..MakeFile::default()
    }));
    files.action(Action::Symlink(Symlink {
        old_path: "f".to_owned(),
        new_path: "/l".to_owned(),
        ..Symlink::default()
    }));
    files.action(Action::Remove(Remove {
        path: "/f".to_owned(),
        ..Remove::default()
    }));
    let copied = builder.add(files.into_draft(Metadata {
        command: "COPY a b".to_owned(),
        ignore_cache: true,
        locations: vec![Location {
            source: file,
            ranges: vec![Range::lines(2, 3)],
        }],
        ..Metadata::named("[1/2] COPY")
    }));
    let mut spec = exec(copied, &["/bin/sh", "-c", "true"]);
    spec.meta.env = vec!["A=1".to_owned()];
    spec.meta.proxy_env = Some(ProxyEnv {
        no_proxy: "x".to_owned(),
        ..ProxyEnv::default()
    });
    spec.meta.valid_exit_codes = vec![0, -1, 300];
    spec.meta.remove_mount_stubs_recursive = true;
    spec.mounts = vec![
        ExecMount {
            source: Some(local),
            dest: "/z".to_owned(),
            ..ExecMount::default()
        },
        ExecMount::cache("/c".to_owned(), CacheSharing::Locked, "/c".to_owned()),
        ExecMount {
            dest: "/t".to_owned(),
            kind: MountKind::Tmpfs { size: 1 << 20 },
            ..ExecMount::default()
        },
    ];
    spec.secrets = vec![SecretMount {
        dest: "/run/secrets/s".to_owned(),
        file: SecretFile {
            id: "s".to_owned(),
            mode: 0o400,
            ..SecretFile::default()
        },
    }];
    spec.ssh = vec![SshMount::default()];
    spec.secret_env = vec![SecretEnv {
        id: "s".to_owned(),
        ..SecretEnv::default()
    }];
    spec.platform = Some(platform("linux", "arm", "v7"));
    spec.metadata.linux_resources = Some(Box::new(LinuxResources {
        cpu_quota: -1,
        ..LinuxResources::default()
    }));
    let ran = builder.add(Draft::from(spec));
    let merge = MergeOp {
        inputs: vec![Some(0), Some(1)],
    };
    let merged = builder.add(Draft {
        metadata: Metadata {
            progress_group: Some(Box::new(ProgressGroup {
                id: "g".to_owned(),
                ..ProgressGroup::default()
            })),
            export_cache: Some(false),
            ..Metadata::default()
        },
        ..Draft::new(Op::Merge(merge), vec![ran, ran.at(1)])
    });
    builder.finish(Some(merged)).unwrap()
}

#[test]
fn a_decoded_graph_is_the_graph_that_was_encoded() {
    let graph = everything();
    let bytes = graph.encode_definition();
    let decoded = Graph::decode_definition(&bytes).unwrap();
    assert_eq!(decoded.dump(), graph.dump());
    assert_eq!(decoded.encode_definition(), bytes);
    assert_eq!(decoded.sources(), graph.sources());
    let ids = |graph: &Graph| {
        graph
            .vertices()
            .iter()
            .map(llb::Vertex::id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&decoded), ids(&graph));
    for (ours, theirs) in graph.vertices().iter().zip(decoded.vertices()) {
        assert_eq!(ours.metadata().name, theirs.metadata().name);
        assert_eq!(ours.metadata().command, theirs.metadata().command);
        assert_eq!(ours.metadata().locations, theirs.metadata().locations);
        assert_eq!(
            ours.metadata().linux_resources,
            theirs.metadata().linux_resources
        );
        assert_eq!(
            ours.metadata().progress_group,
            theirs.metadata().progress_group
        );
        assert_eq!(ours.metadata().export_cache, theirs.metadata().export_cache);
    }
}

#[test]
fn identity_is_what_a_vertex_does_and_nothing_beside_it() {
    let id = |change: fn(&mut Draft)| {
        let mut builder = GraphBuilder::default();
        let base = image(&mut builder, "docker-image://a");
        let mut draft = Draft::from(exec(base, &["true"]));
        change(&mut draft);
        let root = builder.add(draft);
        builder.finish(Some(root)).unwrap().vertices()[1].id()
    };
    let plain = id(|_| {});
    assert_eq!(plain, id(|draft| draft.metadata = Metadata::named("x")));
    assert_eq!(plain, id(|draft| draft.metadata.ignore_cache = true));
    assert_ne!(
        plain,
        id(|draft| draft.platform = Some(platform("linux", "amd64", "")))
    );
    assert_ne!(plain, id(|draft| draft.constraints.push("x".to_owned())));
    assert_ne!(
        plain,
        id(|draft| draft.op = Draft::from(exec(draft.inputs[0], &["false"])).op)
    );
}

/// Digests that BuildKit printed when its encoder still wrote all fields by number (moby/buildkit, pull request 5).
#[test]
fn links_are_followed_by_the_digests_of_the_bytes_that_came() {
    let message = |field: u8, content: &[u8]| {
        let mut bytes = vec![field << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    };
    let name = message(1, b"docker-image://docker.io/library/busybox:latest");
    let source = message(3, &name);
    let digest = Digest::sha256_of(&source);
    assert_eq!(
        digest.to_string(),
        "sha256:74ecb5d790c33a213ba00f8f43d62947df1d4dea72f5ec13353a9b943f469f0f"
    );
    let meta = [
        message(1, b"/bin/sleep"),
        message(1, b"1"),
        message(3, b"/"),
    ]
    .concat();
    let run = message(
        2,
        &[message(1, &meta), message(2, &message(3, b"/"))].concat(),
    );
    let exec = [message(1, &message(1, digest.to_string().as_bytes())), run].concat();
    let digest = Digest::sha256_of(&exec);
    assert_eq!(
        digest.to_string(),
        "sha256:1de5701b93648843bf2cf6ebf982b4f63ea55dcb9259e73a5bd6737505660d06"
    );
    let last = message(1, &message(1, digest.to_string().as_bytes()));
    let definition = [message(1, &source), message(1, &exec), message(1, &last)].concat();
    let graph = Graph::decode_definition(&definition).unwrap();
    assert_eq!(graph.vertices().len(), 2);
    let Op::Exec(exec) = graph.vertices()[1].op() else {
        panic!("{}", graph.dump())
    };
    assert_eq!(exec.meta.args, ["/bin/sleep", "1"]);
    // What came goes out: the operations have the same bytes.
    let written = graph.encode_definition();
    assert_eq!(&written[..definition.len()], &definition[..]);
}

/// Fields by number, the members of a oneof last: `op` has number 3 and comes after `platform` and `constraints`.
#[test]
fn an_op_is_written_as_go_writes_it() {
    let mut builder = GraphBuilder::default();
    let root = image(&mut builder, "docker-image://a");
    let bytes = builder.finish(Some(root)).unwrap().encode_definition();
    let platform = b"\x52\x0e\x0a\x05amd64\x12\x05linux";
    let constraints = b"\x5a\x00";
    let source = b"\x1a\x12\x0a\x10docker-image://a";
    let op = [platform.as_slice(), constraints, source].concat();
    assert_eq!(&bytes[2..2 + op.len()], &op[..]);
    let graph = Graph::decode_definition(&bytes).unwrap();
    assert_eq!(graph.vertices()[0].id().digest(), Digest::sha256_of(&op));
}

#[test]
fn fields_that_are_not_known_are_kept_and_are_part_of_the_identity() {
    let mut builder = GraphBuilder::default();
    let root = image(&mut builder, "docker-image://a");
    let plain = builder.finish(Some(root)).unwrap();
    let bytes = plain.encode_definition();
    let length = usize::from(bytes[1]);
    // Field 90 with the number 7.
    let extended = [&bytes[2..2 + length], b"\xd0\x05\x07"].concat();
    let digest = Digest::sha256_of(&extended).to_string();
    let link = [b"\x0a\x47", digest.as_bytes()].concat();
    let last = [b"\x0a\x49".as_slice(), &link].concat();
    let mut definition = vec![10, u8::try_from(extended.len()).unwrap()];
    definition.extend_from_slice(&extended);
    definition.extend_from_slice(&[10, u8::try_from(last.len()).unwrap()]);
    definition.extend_from_slice(&last);
    // Field 80 of the definition.
    definition.extend_from_slice(b"\x80\x05\x01");
    let graph = Graph::decode_definition(&definition).unwrap();
    assert_ne!(graph.vertices()[0].id(), plain.vertices()[0].id());
    assert_eq!(graph.vertices()[0].op(), plain.vertices()[0].op());
    let written = graph.encode_definition();
    let known = definition.len() - 3;
    assert_eq!(&written[..known], &definition[..known]);
    assert!(written.ends_with(b"\x80\x05\x01"));
}

#[test]
fn what_the_root_does_not_need_is_left_out_and_equal_vertices_are_one() {
    let mut builder = GraphBuilder::default();
    let one = image(&mut builder, "docker-image://a");
    let same = image(&mut builder, "docker-image://a");
    image(&mut builder, "docker-image://unused");
    builder.draft_mut(one).metadata = Metadata::named("first");
    builder.draft_mut(same).metadata = Metadata {
        ignore_cache: true,
        ..Metadata::named("second")
    };
    let merge = Op::Merge(MergeOp {
        inputs: vec![Some(0), Some(1)],
    });
    let root = builder.add(Draft::new(merge, vec![one, same]));
    let graph = builder.finish(Some(root)).unwrap();
    assert_eq!(graph.vertices().len(), 2);
    let metadata = graph.vertices()[0].metadata();
    assert_eq!(
        (metadata.name.as_str(), metadata.ignore_cache),
        ("second", true)
    );
    assert!(
        GraphBuilder::default()
            .finish(None)
            .unwrap()
            .encode_definition()
            .is_empty()
    );
    assert!(Graph::decode_definition(b"").unwrap().root().is_none());
}

#[test]
fn the_mounts_of_a_process_are_sorted_and_its_outputs_numbered() {
    let graph = everything();
    let exec = graph
        .vertices()
        .iter()
        .find_map(|vertex| match vertex.op() {
            Op::Exec(exec) => Some(exec),
            _ => None,
        });
    let exec = exec.unwrap();
    let mounts = exec
        .mounts
        .iter()
        .map(|mount| (mount.dest.as_str(), mount.output));
    let expected = [
        ("/", Some(0)),
        ("/c", None),
        ("/t", None),
        ("/z", Some(1)),
        ("/run/secrets/s", None),
        ("/run/buildkit/ssh_agent.0", None),
    ];
    assert_eq!(mounts.collect::<Vec<_>>(), expected);
    assert_eq!(
        exec.meta.env,
        ["A=1", "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0"]
    );
}

#[test]
fn numbers_that_name_nothing_are_errors() {
    let fails = |make: fn(&mut GraphBuilder) -> Output| {
        let mut builder = GraphBuilder::default();
        let root = make(&mut builder);
        builder.finish(Some(root)).unwrap_err()
    };
    let missing_input = fails(|builder| {
        builder.add(Draft::new(
            Op::Merge(MergeOp {
                inputs: vec![Some(0)],
            }),
            Vec::new(),
        ))
    });
    assert!(matches!(
        missing_input,
        LlbError::NoSuchInput { input: 0, .. }
    ));
    let missing_output = fails(|builder| {
        let base = image(builder, "docker-image://a").at(1);
        builder.add(Draft::from(exec(base, &["true"])))
    });
    assert!(matches!(
        missing_output,
        LlbError::NoSuchOutput {
            output: 1,
            outputs: 1,
            ..
        }
    ));
    let no_arguments = fails(|builder| {
        let base = image(builder, "docker-image://a");
        builder.add(Draft::from(exec(base, &[])))
    });
    assert!(matches!(no_arguments, LlbError::Invalid { .. }));
    let later_action = fails(|builder| {
        let mut draft = FileSpec::new(None);
        draft.action(Action::Remove(Remove::default()));
        let mut draft = draft.into_draft(Metadata::default());
        let Op::File(file) = &mut draft.op else {
            unreachable!()
        };
        file.actions[0].input = Some(llb::ActionInput::Action(0));
        builder.add(draft)
    });
    assert!(matches!(later_action, LlbError::Invalid { .. }));
    let output_beyond = fails(|builder| {
        let mut draft = FileSpec::new(None);
        draft.action(Action::Remove(Remove::default()));
        let mut draft = draft.into_draft(Metadata::default());
        let Op::File(file) = &mut draft.op else {
            unreachable!()
        };
        // Room for all outputs below would be made.
        file.actions[0].output = Some(1 << 40);
        builder.add(draft)
    });
    assert!(matches!(output_beyond, LlbError::Invalid { .. }));
    let no_file = fails(|builder| {
        let output = image(builder, "docker-image://a");
        builder.draft_mut(output).metadata.locations = vec![Location::default()];
        output
    });
    assert!(matches!(no_file, LlbError::NoSuchSource { .. }));
}

#[test]
fn cut_or_changed_definitions_never_panic() {
    let bytes = everything().encode_definition();
    for end in 0..bytes.len() {
        let _ = Graph::decode_definition(&bytes[..end]);
    }
    let mut state = 1_u32;
    for _ in 0..20_000 {
        let mut changed = bytes.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = state as usize % changed.len();
            changed[at] ^= (state >> 24) as u8;
        }
        if let Ok(graph) = Graph::decode_definition(&changed) {
            let again = Graph::decode_definition(&graph.encode_definition()).unwrap();
            assert_eq!(again.dump(), graph.dump());
        }
    }
}

#[test]
fn a_chain_of_any_length_is_read_without_recursion() {
    let mut builder = GraphBuilder::default();
    let mut last = image(&mut builder, "docker-image://a");
    for number in 0..20_000 {
        last = builder.add(Draft::from(exec(last, &["step", &number.to_string()])));
    }
    let graph = builder.finish(Some(last)).unwrap();
    let decoded = Graph::decode_definition(&graph.encode_definition()).unwrap();
    assert_eq!(decoded.vertices().len(), 20_001);
    assert_eq!(decoded.root(), graph.root());
}

/// Two drafts of one image are one vertex, and who uses both uses it once, as BuildKit's client has it.
#[test]
fn an_input_that_is_used_twice_is_named_once() {
    let mut graph = GraphBuilder::default();
    let image = || {
        let source = SourceOp {
            identifier: "docker-image://docker.io/library/alpine:3".to_owned(),
            ..SourceOp::default()
        };
        Draft::new(Op::Source(source), Vec::new())
    };
    let (one, other) = (graph.add(image()), graph.add(image()));
    let mut spec = FileSpec::new(Some(one));
    let copy = Copy {
        source: "/a".to_owned(),
        dest: "/b".to_owned(),
        ..Copy::default()
    };
    spec.copy(Some(other), copy);
    let root = graph.add(spec.into_draft(Metadata::default()));
    let graph = graph.finish(Some(root)).unwrap();
    let last = graph.vertices().last().unwrap();
    assert_eq!(last.inputs().len(), 1);
    assert!(
        graph.dump().contains("a0 on v0 -> 0: copy v0:\"/a\""),
        "{}",
        graph.dump()
    );
}
