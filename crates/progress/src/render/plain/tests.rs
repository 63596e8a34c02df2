use super::super::testing::Teller;
use super::*;
use crate::Outcome;

fn teller() -> Teller<Plain<super::super::testing::Output>> {
    Teller::new(Plain::new)
}

#[test]
fn steps_are_shown_as_blocks() {
    teller()
        .add("[internal] load build definition from Dockerfile")
        .add("[builder 1/3] FROM docker.io/library/busybox")
        .start("[internal] load build definition from Dockerfile", 0)
        .refresh(50)
        .part(
            "[internal] load build definition from Dockerfile",
            "transferring dockerfile:",
            (1234, 0),
            (0, 40),
            true,
        )
        .done("[internal] load build definition from Dockerfile", (0, 60))
        .end(
            "[builder 1/3] FROM docker.io/library/busybox",
            (60, 60),
            Outcome::Cached,
        )
        .start("[builder 2/3] RUN make", 100)
        .log("[builder 2/3] RUN make", 223, "cc a.c\ncc b.c\n")
        .refresh(300)
        .done("[builder 2/3] RUN make", (100, 1640))
        .finish(1700)
        .check(
            "#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 1.23kB 0.0s done
#1 DONE 0.1s

#2 [builder 1/3] FROM docker.io/library/busybox
#2 CACHED

#3 [builder 2/3] RUN make
#3 0.123 cc a.c
#3 0.123 cc b.c
#3 DONE 1.5s
",
        );
}

#[test]
fn a_failed_step_is_repeated_at_the_end_with_its_last_lines() {
    let log: String = (1..=12).map(|line| format!("line {line}\n")).collect();
    teller()
        .start("[stage 2/3] RUN false", 0)
        .log("[stage 2/3] RUN false", 10, &log)
        .fail(
            "[stage 2/3] RUN false",
            (0, 20),
            "process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
        )
        .start("[other] RUN sleep", 0)
        .end("[other] RUN sleep", (0, 30), Outcome::Canceled)
        .finish(40)
        .check(
            "#1 [stage 2/3] RUN false
#1 0.010 line 1
#1 0.010 line 2
#1 0.010 line 3
#1 0.010 line 4
#1 0.010 line 5
#1 0.010 line 6
#1 0.010 line 7
#1 0.010 line 8
#1 0.010 line 9
#1 0.010 line 10
#1 0.010 line 11
#1 0.010 line 12
#1 ERROR: process \"/bin/sh -c false\" did not complete successfully: exit code: 1

#2 [other] RUN sleep
#2 CANCELED
------
 > [stage 2/3] RUN false:
0.010 line 3
0.010 line 4
0.010 line 5
0.010 line 6
0.010 line 7
0.010 line 8
0.010 line 9
0.010 line 10
0.010 line 11
0.010 line 12
------
",
        );
}

#[test]
fn a_line_may_come_in_pieces() {
    teller()
        .start("a", 0)
        .log("a", 10, "one")
        .refresh(20)
        .check("#1 a\n#1 0.010 one")
        .log("a", 30, "two\nthr")
        .refresh(40)
        .check("two\n#1 0.030 thr")
        .done("a", (0, 50))
        .finish(60)
        .check("\n#1 DONE 0.1s\n");
}

#[test]
fn steps_that_run_at_once_take_turns() {
    let mut teller = teller();
    teller
        .start("a", 0)
        .start("b", 0)
        .log("a", 100, "a1\n")
        .refresh(200);
    teller.check("#1 a\n#1 0.100 a1\n");
    teller
        .log("b", 300, "b1\n")
        .log("a", 400, "a2 and mo")
        .refresh(500);
    // b waits: a has not had its time.
    teller.check("#1 0.400 a2 and mo");
    teller.log("b", 15_000, "b2\n").refresh(15_000);
    teller.check("\n#1 ...\n\n#2 b\n#2 0.300 b1\n#2 15.00 b2\n");
    teller
        .log("a", 15_100, "re\n")
        .done("b", (0, 15_200))
        .refresh(15_300);
    teller.check("#2 DONE 15.2s\n\n#1 a\n#1 0.400 a2 and more\n");
    teller.done("a", (0, 16_000)).finish(16_000);
    teller.check("#1 DONE 16.0s\n");
}

#[test]
fn what_completes_is_shown_in_the_order_of_the_ends() {
    teller()
        .start("a", 0)
        .start("b", 0)
        .refresh(1)
        .check("#1 a\n")
        .done("b", (0, 60))
        .done("a", (0, 110))
        .refresh(200)
        .check("#1 DONE 0.1s\n\n#2 b\n#2 DONE 0.1s\n");
}

#[test]
fn transfers_are_shown_when_they_have_moved() {
    let total = 10_000_000;
    let mut teller = teller();
    teller
        .start("p", 0)
        .part("p", "sha256:abc", (0, total), (0, 0), false)
        .refresh(1);
    teller.check("#1 p\n#1 sha256:abc 0B / 10.00MB\n");
    teller
        .part("p", "sha256:abc", (400_000, total), (0, 100), false)
        .refresh(100)
        .check("");
    teller
        .part("p", "sha256:abc", (500_000, total), (0, 200), false)
        .refresh(200);
    teller.check("#1 sha256:abc 500.00kB / 10.00MB 0.2s\n");
    teller
        .part("p", "sha256:abc", (500_001, total), (0, 5200), false)
        .refresh(5200);
    teller.check("#1 sha256:abc 500.00kB / 10.00MB 5.2s\n");
    teller
        .part("p", "sha256:abc", (total, total), (0, 6000), true)
        .refresh(6000);
    teller.check("#1 sha256:abc 10.00MB / 10.00MB 6.0s done\n");
}

#[test]
fn a_group_is_one_step_and_hidden_while_only_weak_vertices_run() {
    let mut teller = teller();
    teller
        .group("g", true)
        .add("x")
        .start("x", 0)
        .refresh(10)
        .check("");
    teller
        .done("x", (0, 20))
        .group("g", false)
        .start("y", 30)
        .log("y", 40, "hi\n")
        .refresh(50);
    teller.check("#1 group g\n#1 0.010 hi\n");
    teller
        .done("y", (30, 130))
        .alone()
        .finish(200)
        .check("#1 DONE 0.1s\n");
}

#[test]
fn warnings_and_names_stay_on_their_line() {
    teller()
        .start("a\x1b[2Jb", 0)
        .warn("a\x1b[2Jb", "careful\nnow")
        .refresh(1)
        .check("#1 a [2Jb\n#1 WARN: careful now\n");
}

#[test]
fn a_step_that_never_ended_is_shown() {
    teller()
        .start("a", 0)
        .start("b", 0)
        .log("b", 1, "x")
        .finish(10)
        .check("#1 b\n#1 0.001 x\n#1 ...\n\n#2 a\n");
}

/// Tells of a step that prints, of one that was found, and of two whose lines take turns.
fn told_with(folds: Folds) -> String {
    let mut teller = Teller::new(|output| Plain::new(output).folded(folds));
    teller
        .start("[a 1/2] RUN echo 100%", 0)
        .log("[a 1/2] RUN echo 100%", 10, "one\n::error::no command\n")
        .refresh(20)
        .end("[b 1/1] FROM x", (20, 20), Outcome::Cached)
        .refresh(30)
        .log("[a 1/2] RUN echo 100%", 40, "two")
        .fail("[a 1/2] RUN echo 100%", (0, 50), "exit code: 1")
        .finish(2000);
    teller.output.take()
}

#[test]
fn github_folds_what_steps_print_and_shows_how_they_ended() {
    assert_eq!(
        told_with(Folds::GitHub),
        "::group::#1 [a 1/2] RUN echo 100%25
#1 0.010 one
#1 0.010 ::error::no command
#1 ...
::endgroup::

#2 [b 1/1] FROM x
#2 CACHED

::group::#1 [a 1/2] RUN echo 100%25
#1 0.040 two
::endgroup::
#1 ERROR: exit code: 1
------
 > [a 1/2] RUN echo 100%:
0.010 one
0.010 ::error::no command
0.040 two
------
"
    );
}

#[test]
fn gitlab_folds_by_sections_with_names_of_their_own() {
    let told = told_with(Folds::GitLab);
    assert!(
        told.starts_with(
            "\x1b[0Ksection_start:0:lapstrake_1[collapsed=true]\r\x1b[0K#1 [a 1/2] RUN echo 100%\n#1 0.010 one\n"
        ),
        "{told:?}"
    );
    assert!(
        told.contains(
            "#1 ...\n\x1b[0Ksection_end:0:lapstrake_1\r\x1b[0K\n#2 [b 1/1] FROM x\n#2 CACHED\n"
        ),
        "{told:?}"
    );
    assert!(
        told.contains("section_start:0:lapstrake_2[collapsed=true]"),
        "{told:?}"
    );
    assert!(
        told.contains(
            "#1 0.040 two\n\x1b[0Ksection_end:2:lapstrake_2\r\x1b[0K#1 ERROR: exit code: 1\n"
        ),
        "{told:?}"
    );
}

#[test]
fn a_carriage_return_begins_no_command_in_a_fold() {
    let mut teller = Teller::new(|output| Plain::new(output).folded(Folds::GitHub));
    teller
        .start("a", 0)
        .log("a", 10, "10%\r::stop-commands::x\rdone\r\n")
        .fail("a", (0, 50), "exit code: 1")
        .finish(2000);
    let told = teller.output.take();
    assert!(
        told.contains("#1 0.010 10%\n#1 0.010 ::stop-commands::x\n#1 0.010 done\n"),
        "{told:?}"
    );
    assert!(told.contains("\n0.010 done\n"), "{told:?}");
}
