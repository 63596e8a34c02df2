use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::testing::{Output, Teller};
use super::*;
use crate::Outcome;

fn teller_of(columns: usize, rows: usize, palette: Palette) -> Teller<Tty<Output>> {
    Teller::new(|output| Tty::new(output, palette, move || Size { columns, rows }))
}

fn teller() -> Teller<Tty<Output>> {
    teller_of(60, 20, Palette::Plain)
}

const HIDE: &str = "\x1b[?25l";
const END: &str = "\x1b[K\n";
const CLEAR: &str = "\x1b[J\x1b[?25h";

/// A drawing over one of `above` lines.
fn drawing(above: usize, lines: &[&str]) -> String {
    let up = if above > 0 {
        format!("\x1b[{above}A\r")
    } else {
        String::new()
    };
    let lines: String = lines.iter().map(|line| format!("{line}{END}")).collect();
    format!("{HIDE}{up}{lines}{CLEAR}")
}

#[test]
fn a_build_is_drawn_over_itself() {
    teller()
        .add("[builder 1/3] FROM busybox")
        .add("[builder 2/3] WORKDIR /app")
        .add("exporting to image")
        .end("[builder 1/3] FROM busybox", (0, 0), Outcome::Cached)
        .start("[builder 2/3] WORKDIR /app", 0)
        .refresh(1250)
        .check(&drawing(
            0,
            &[
                "[+] Building 1.2s (1/3)",
                " => CACHED [builder 1/3] FROM busybox                  0.0s",
                " => [builder 2/3] WORKDIR /app                         1.2s",
            ],
        ))
        .done("[builder 2/3] WORKDIR /app", (0, 1300))
        .start("exporting to image", 1300)
        .part(
            "exporting to image",
            "exporting layers",
            (0, 0),
            (1300, 1500),
            true,
        )
        .part(
            "exporting to image",
            "writing blob",
            (1500, 30_000),
            (1500, 1500),
            false,
        )
        .done("exporting to image", (1300, 1600))
        .finish(1700)
        .check(&drawing(
            3,
            &[
                "[+] Building 1.7s (3/3) FINISHED",
                " => CACHED [builder 1/3] FROM busybox                  0.0s",
                " => [builder 2/3] WORKDIR /app                         1.3s",
                " => exporting to image                                 0.3s",
                " => => exporting layers                                0.2s",
                " => => writing blob 1.50kB / 30.00kB                   0.2s",
            ],
        ));
}

#[test]
fn running_steps_show_their_last_lines() {
    teller()
        .start("RUN make", 0)
        .log("RUN make", 10, "1\n2\n3\n4\n5\n6\n7\n8\x1b[31m%\r9")
        .refresh(500)
        .check(&drawing(
            0,
            &[
                "[+] Building 0.5s (0/1)",
                " => RUN make                                           0.5s",
                " => => # 3",
                " => => # 4",
                " => => # 5",
                " => => # 6",
                " => => # 7",
                " => => # 9%",
            ],
        ))
        .done("RUN make", (0, 600))
        .refresh(600)
        .check(&drawing(
            8,
            &[
                "[+] Building 0.6s (1/1)",
                " => RUN make                                           0.6s",
            ],
        ));
}

#[test]
fn a_failed_step_is_shown_with_its_log() {
    teller()
        .start("RUN false", 0)
        .log("RUN false", 10, "oh\nno")
        .fail("RUN false", (0, 100), "exit code: 1")
        .finish(100)
        .check(&format!(
            "{}------\n > RUN false:\n0.010 oh\n0.010 no\n------\n",
            drawing(
                0,
                &[
                    "[+] Building 0.1s (1/1) FINISHED",
                    " => ERROR RUN false                                    0.1s"
                ]
            )
        ));
}

#[test]
fn colours_tell_how_steps_ended_unless_they_are_not_wanted() {
    let mut teller = teller_of(30, 20, Palette::Colors);
    teller
        .done("a", (0, 0))
        .fail("b", (0, 0), "x")
        .end("c", (0, 0), Outcome::Canceled)
        .start("d", 0)
        .log("d", 0, "hi");
    teller.refresh(0).check(&drawing(
        0,
        &[
            "[+] Building 0.0s (3/4)",
            "\x1b[34m => a                    0.0s\x1b[0m",
            "\x1b[31m => ERROR b              0.0s\x1b[0m",
            "\x1b[33m => CANCELED c           0.0s\x1b[0m",
            " => d                    0.0s",
            "\x1b[2m => => # hi\x1b[0m",
        ],
    ));
}

#[test]
fn a_low_window_keeps_what_is_running() {
    let mut teller = teller_of(30, 5, Palette::Plain);
    teller.start("first", 0);
    for name in ["a", "b", "c", "d"] {
        teller.done(name, (0, 0));
    }
    teller.refresh(0).check(&drawing(
        0,
        &[
            "[+] Building 0.0s (4/5)",
            " => first                0.0s",
            " => c                    0.0s",
            " => d                    0.0s",
        ],
    ));
}

#[test]
fn a_low_window_has_room_for_some_lines_of_a_step() {
    teller_of(30, 10, Palette::Plain)
        .start("RUN make", 0)
        .log("RUN make", 0, "1\n2\n3\n4\n5\n6\n7")
        .refresh(0)
        .check(&drawing(
            0,
            &[
                "[+] Building 0.0s (0/1)",
                " => RUN make             0.0s",
                " => => # 4",
                " => => # 5",
                " => => # 6",
                " => => # 7",
            ],
        ));
}

#[test]
fn what_runs_and_has_no_room_is_counted() {
    let mut teller = teller_of(50, 5, Palette::Plain);
    for number in 0..100 {
        teller.start(&format!("step {number}"), 0);
    }
    let shown = [
        "[+] Building 0.0s (0/100) and 97 more running",
        " => step 97                                  0.0s",
        " => step 98                                  0.0s",
        " => step 99                                  0.0s",
    ];
    teller.refresh(0).check(&drawing(0, &shown));
}

#[test]
fn a_name_that_is_cut_tells_so() {
    teller_of(40, 5, Palette::Plain)
        .start("RUN echo 日本語 and much more than fits", 0)
        .refresh(0)
        .check(&drawing(
            0,
            &[
                "[+] Building 0.0s (0/1)",
                " => RUN echo 日本語 and much mor…  0.0s",
            ],
        ));
}

#[test]
fn what_a_failed_step_printed_steers_nothing() {
    let mut teller = teller_of(60, 20, Palette::Colors);
    teller
        .start("RUN x", 0)
        .log(
            "RUN x",
            0,
            "10%\r99%\r\n\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m\n",
        )
        .fail("RUN x", (0, 0), "exit code: 1")
        .finish(0);
    let told = teller.output.take();
    let log = told.split_once("------\n > RUN x:\n").unwrap().1;
    assert_eq!(log, "0.000 99%\n0.000 \x1b[31mred\x1b[0m\n------\n");
}

#[test]
fn a_window_that_has_become_narrower_is_drawn_over_whole() {
    let columns = Arc::new(AtomicUsize::new(60));
    let size = columns.clone();
    let mut teller = Teller::new(|output| {
        Tty::new(output, Palette::Plain, move || Size {
            columns: size.load(Ordering::Relaxed),
            rows: 20,
        })
    });
    teller.start("a", 0).refresh(0);
    teller.output.take();
    columns.store(30, Ordering::Relaxed);
    // The line of 59 columns takes two rows now.
    teller.refresh(0).check(&drawing(
        3,
        &["[+] Building 0.0s (0/1)", " => a                    0.0s"],
    ));
    columns.store(10, Ordering::Relaxed);
    teller.refresh(0).check(&drawing(6, &["[+] Buildi"]));
}

#[test]
fn a_log_without_end_is_kept_for_its_end() {
    let mut teller = teller();
    teller.start("a", 0);
    let line = format!("{}\n", "x".repeat(999));
    for _ in 0..3000 {
        teller.log("a", 0, &line);
    }
    teller.fail("a", (0, 1), "x").finish(1);
    let shown = teller.output.take();
    assert!(shown.len() < 1_200_000, "{}", shown.len());
    assert!(
        shown.contains("(1952 lines before these are in the log of the step)"),
        "{}",
        &shown[..400]
    );
}

#[test]
fn steps_of_a_stage_stand_together() {
    teller()
        .done("[internal] load build definition", (0, 0))
        .start("[a 1/2] FROM x", 0)
        .start("[b 1/2] FROM y", 0)
        .done("[a 1/2] FROM x", (0, 100))
        .start("[a 2/2] RUN make", 100)
        .done("[internal] load build context", (0, 100))
        .refresh(1000)
        .check(&drawing(
            0,
            &[
                "[+] Building 1.0s (3/5)",
                " => [internal] load build definition                   0.0s",
                " => [internal] load build context                      0.1s",
                " => [a 1/2] FROM x                                     0.1s",
                " => [a 2/2] RUN make                                   0.9s",
                " => [b 1/2] FROM y                                     1.0s",
            ],
        ));
}

#[test]
fn transfers_have_a_bar_and_a_rate_while_they_run() {
    let layer = "sha256:0123456789ab";
    let told = |columns: usize| {
        let mut teller = teller_of(columns, 20, Palette::Plain);
        teller.start("[1/2] FROM x", 0).part(
            "[1/2] FROM x",
            layer,
            (25_000_000, 100_000_000),
            (0, 2000),
            false,
        );
        teller.refresh(2000).output.take()
    };
    let line = |columns| told(columns).lines().nth(2).unwrap().replace("\x1b[K", "");
    assert_eq!(
        line(100),
        " => => sha256:0123456789ab [=====>              ] 25.00MB / 100.00MB 12.50MB/s                 2.0s"
    );
    assert_eq!(
        line(80),
        " => => sha256:0123456789ab [==>       ] 25.00MB / 100.00MB 12.50MB/s       2.0s"
    );
    assert_eq!(
        line(60),
        " => => sha256:012345678… 25.00MB / 100.00MB 12.50MB/s  2.0s"
    );
}
