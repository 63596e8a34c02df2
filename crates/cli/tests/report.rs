//! Pages about builds, in a real browser.

use std::path::PathBuf;

use testkit::Environment;
use testkit::browser::Browser;

const DOCKERFILE: &str = r#"FROM busybox AS base
RUN echo "fetching" && echo "needle in base"
FROM base AS assets
RUN for i in 1 2 3; do echo "asset $i <script>document.title='owned'</script>"; done; echo 1 > /assets; printf '\033[31mred\033[0m\n'
FROM base AS server
RUN echo "<img src=x onerror=document.title='owned'>" >&2; head -c 200000 /dev/zero > '/<script>document.title="owned"<!--'
FROM base AS unused
RUN never
FROM busybox
RUN head -c 300000 /dev/zero > /junk
COPY --from=assets /assets /srv/
COPY --from=server /*script* /srv/
RUN rm /junk && echo "Needle at the end"
ENV A="<script>document.title='owned'</script>"
LABEL <b/onclick>="</script><script>document.title='owned'</script>"
CMD ["</style><script>document.title='owned'</script>"]
"#;

/// Builds twice, and returns the page about the second build.
fn report() -> (Environment, PathBuf) {
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write("Dockerfile", DOCKERFILE);
    environment.ok(["build", "-t", "app", "."]);
    let changed = DOCKERFILE.replace("echo 1 > /assets", "echo 2 > /assets");
    environment.write("Dockerfile", changed);
    environment.ok(["build", "-t", "app", "."]);
    let told = environment.ok(["report", "-o", "page.html"]).stdout;
    assert_eq!(told, "page.html\n");
    let page = environment.work().join("page.html");
    (environment, page)
}

/// Returns how many elements match and are shown.
#[track_caller]
fn shown(browser: &mut Browser, selector: &str) -> u64 {
    let count = format!(
        "[...document.querySelectorAll({selector:?})].filter(e => e.checkVisibility()).length"
    );
    browser.evaluate(&count).as_u64().unwrap()
}

#[test]
fn a_page_is_clicked_and_searched() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let (_environment, page) = report();
    let mut browser = Browser::start();
    browser.look(1280, 900, false);
    browser.open(&page);
    assert_eq!(shown(&mut browser, ".figures div"), 5);
    assert_eq!(
        browser.evaluate("document.querySelector('.status').innerText.trim()"),
        "✓\nCompleted"
    );
    assert_eq!(shown(&mut browser, ".graph .stage"), 5);
    assert_eq!(shown(&mut browser, ".graph .stage.skipped"), 1);
    assert_eq!(shown(&mut browser, ".graph .source"), 1);

    // A bar of the timeline, and a row of the graph, open their step.
    let number = browser.evaluate(
        "[...document.querySelectorAll('.step')].find(s => s.querySelector('summary').textContent.includes('echo 2 > /assets')).id",
    );
    let step = number.as_str().unwrap();
    assert_eq!(shown(&mut browser, &format!("#{step} .log")), 0);
    browser.click(&format!(".lanes a[href='#{step}'] rect"));
    browser.wait(&format!("document.getElementById('{step}').open"));
    assert_eq!(
        browser.evaluate(&format!(
            "document.activeElement.parentNode.id === '{step}'"
        )),
        true
    );
    let text = browser.evaluate(&format!("document.getElementById('{step}').innerText"));
    let text = text.as_str().unwrap();
    assert!(
        text.contains("asset 1 <script>document.title='owned'</script>\n"),
        "{text}"
    );
    assert!(
        text.contains("\nred") && text.contains("Ran because"),
        "{text}"
    );
    browser.click(&format!("#{step} summary"));
    browser.wait(&format!("!document.getElementById('{step}').open"));
    browser.click(&format!(".graph a[href='#{step}'] .hit"));
    browser.wait(&format!("document.getElementById('{step}').open"));

    // Filters.
    let all = shown(&mut browser, ".step");
    browser.click("[data-show=cached]");
    let cached = shown(&mut browser, ".step");
    assert_eq!(shown(&mut browser, ".step.cached"), cached);
    assert!(cached > 0 && cached < all, "{cached} of {all}");
    browser.click("[data-show=all]");
    assert_eq!(shown(&mut browser, ".step"), all);

    // Search by keyboard: upper and lower case alike, in logs and names.
    browser.press("/", "/");
    assert_eq!(browser.evaluate("document.activeElement.id"), "search");
    browser.write("NEEDLE");
    browser.wait("document.querySelectorAll('mark').length === 4");
    assert_eq!(shown(&mut browser, ".step"), 2);
    assert_eq!(
        browser.evaluate("document.getElementById('found').textContent"),
        "4 matches"
    );
    browser.press("Enter", "\r");
    assert_eq!(
        browser.evaluate("document.getElementById('found').textContent"),
        "1 of 4"
    );
    browser.press("Enter", "\r");
    browser.press("Enter", "\r");
    assert_eq!(
        browser.evaluate("document.getElementById('found').textContent"),
        "3 of 4"
    );
    assert_eq!(shown(&mut browser, "mark.now"), 1);
    browser.press("Escape", "");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('mark').length"),
        0
    );
    assert_eq!(shown(&mut browser, ".step"), all);
    browser.write("nowhere at all");
    browser.wait("!document.getElementById('none').hidden");
    browser.press("Escape", "");

    // A layer and its files.
    browser.click(".layers li:nth-last-child(4) summary");
    let layer = browser.evaluate("document.querySelector('.layer[open]').innerText");
    let layer = layer.as_str().unwrap();
    assert!(
        layer.contains("/junk") && layer.contains("removed in layer"),
        "{layer}"
    );

    // What changed since the build before.
    let changes = browser.evaluate("document.getElementById('changes').innerText");
    let changes = changes.as_str().unwrap();
    assert!(
        changes.contains("cached → ") || changes.contains("ran"),
        "{changes}"
    );
    assert!(changes.contains("echo 2 > /assets"), "{changes}");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn nothing_that_was_printed_or_named_runs() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let (_environment, page) = report();
    let mut browser = Browser::start();
    browser.look(1280, 900, false);
    browser.open(&page);
    browser.click("#open");
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)");
    assert_eq!(browser.evaluate("document.title"), "work – build report");
    assert_eq!(browser.evaluate("document.scripts.length"), 1);
    assert_eq!(
        browser.evaluate("document.querySelectorAll('img, [onclick], [onerror], [style]').length"),
        0
    );
    let text = browser.evaluate("document.body.innerText");
    let text = text.as_str().unwrap();
    for hostile in [
        "<img src=x onerror=document.title='owned'>",
        "/srv/<script>document.title=\"owned\"<!--",
        "</script><script>document.title='owned'</script>",
        "</style><script>document.title='owned'</script>",
    ] {
        assert!(text.contains(hostile), "{hostile} is not shown: {text}");
    }
    // Even markup that got in would not run: the policy knows one script alone.
    browser.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"'; document.body.append(s); })()",
    );
    assert_eq!(browser.evaluate("document.title"), "work – build report");
    let complaints = browser.complaints();
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(
        complaints[0].contains("Content Security Policy"),
        "{complaints:?}"
    );
}

#[test]
fn a_page_fits_its_window_and_has_names_for_everything() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let (_environment, page) = report();
    let mut browser = Browser::start();
    let pictures = std::env::var_os("LAPSTRAKE_TEST_PICTURES").map(PathBuf::from);
    let mut backgrounds = Vec::new();
    for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
        browser.look(width, 900, dark);
        browser.open(&page);
        let wide = browser.evaluate("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{wide} at {width}"
        );
        backgrounds.push(browser.evaluate("getComputedStyle(document.body).backgroundColor"));
        let contrasts = browser.evaluate(CONTRASTS);
        assert_eq!(
            contrasts.to_string(),
            "[]",
            "too little contrast at {width}, dark: {dark}"
        );
        browser
            .evaluate("document.querySelectorAll('.step.ran, .layer').forEach(d => d.open = true)");
        let picture = browser.screenshot();
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(folder) = &pictures {
            let name = format!("report-{width}-{}.png", if dark { "dark" } else { "light" });
            std::fs::write(folder.join(name), picture).unwrap();
        }
    }
    assert_eq!(backgrounds[0], backgrounds[2]);
    assert_ne!(backgrounds[0], backgrounds[1]);
    // The button goes from the system's colours to light ones, then to dark ones.
    for expected in [0, 1, 1] {
        browser.click("#theme");
        let now = browser.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(now, backgrounds[expected]);
    }
    let names = browser.accessible();
    for (role, name) in &names {
        let needs_a_name = [
            "link",
            "button",
            "searchbox",
            "textbox",
            "region",
            "heading",
        ];
        let is_empty = name.trim().is_empty() && needs_a_name.contains(&role.as_str());
        assert!(!is_empty, "a {role} has no name: {names:?}");
    }
    let has = |role: &str, part: &str| {
        names
            .iter()
            .any(|(is, name)| is == role && name.contains(part))
    };
    assert!(
        has("heading", "Timeline")
            && has("region", "Steps and logs")
            && has("navigation", "Sections")
    );
    assert!(
        has("link", "on the critical path") && has("button", "Next match"),
        "{names:?}"
    );
    // Everything is reached by Tab, in the order of the page, with a ring around it.
    browser.open(&page);
    browser.press("Tab", "");
    assert_eq!(browser.evaluate("document.activeElement.className"), "skip");
    browser.press("Tab", "");
    assert_eq!(browser.evaluate("document.activeElement.id"), "theme");
    assert_ne!(
        browser.evaluate("getComputedStyle(document.activeElement).outlineStyle"),
        "none"
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Returns texts whose contrast with what is behind them is below 4.5 to 1, as WCAG's AA counts it.
const CONTRASTS: &str = r"(() => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const parse = (text) => { context.clearRect(0, 0, 1, 1); context.fillStyle = text; context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  const behind = (element) => { for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0.9) return c; } return [255, 255, 255, 1]; };
  const bad = [];
  for (const element of document.querySelectorAll('body *:not(svg *):not(:disabled)')) {
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || element.getClientRects().length === 0 || element.closest('script')) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
  }
  return bad;
})()";

#[test]
fn a_page_of_a_failed_build_begins_with_the_failure() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let failing =
        "FROM busybox AS a\nRUN echo \"<script>document.title='owned'</script>\" >&2; exit 7\n";
    environment.write(
        "Dockerfile",
        format!("{failing}FROM scratch\nCOPY --from=a /f /\n"),
    );
    environment.run(["build", "-t", "app", "."]).fails_with(1);
    environment.ok(["report", "-o", "page.html"]);
    let mut browser = Browser::start();
    for width in [400, 1280] {
        browser.look(width, 900, false);
        browser.open(&environment.work().join("page.html"));
        let status = browser.evaluate("document.querySelector('.status').innerText.trim()");
        assert_eq!(status, "✕\nFailed");
        let text = browser.evaluate("document.body.innerText");
        let text = text.as_str().unwrap_or_default();
        let (before, _) = text.split_once("Stages side by side").unwrap_or_default();
        assert!(before.contains("exit code: 7"), "{text}");
        let wide = browser.evaluate("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{wide} at {width}"
        );
        let title = browser.evaluate("document.title");
        assert_ne!(title, "owned");
    }
}

#[test]
fn a_page_of_many_stages_and_a_long_log_stays_usable() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    let mut dockerfile = String::new();
    for number in 0..300 {
        dockerfile.push_str(&format!(
            "FROM scratch AS s{number}\nCOPY Dockerfile /{number}\n"
        ));
    }
    dockerfile.push_str("FROM busybox\nRUN yes 'a line that goes on and on' | head -c 20000000\n");
    for number in 0..300 {
        dockerfile.push_str(&format!("COPY --from=s{number} /{number} /\n"));
    }
    environment.write("Dockerfile", dockerfile);
    environment.ok(["build", "-q", "-t", "app", "."]);
    environment.ok(["report", "-o", "page.html"]);
    let page = environment.work().join("page.html");
    let size = std::fs::metadata(&page).unwrap().len();
    assert!(size < 4_000_000, "{size} bytes");
    let mut browser = Browser::start();
    browser.look(1280, 900, false);
    browser.open(&page);
    let high = browser.evaluate("document.querySelector('#timeline').clientHeight");
    assert!(high.as_u64().unwrap() < 2000, "the timeline is {high} high");
    let seen = "(() => { const of = (s) => document.querySelector(s).getBoundingClientRect();
        const [target, frame] = [of('#graph .stage.target'), of('#graph .scroll')];
        return target.top >= frame.top && target.left >= frame.left && target.left < frame.right; })()";
    assert_eq!(browser.evaluate(seen), true, "the target is out of sight");
    let lanes = browser.evaluate("document.querySelectorAll('.lanes > li').length");
    assert!(lanes.as_u64().unwrap() > 300, "{lanes} lanes");
}

#[test]
fn a_page_of_several_platforms_names_them_without_breaking_words() {
    testkit::require_fixtures!("busybox");
    testkit::require_programs!("chromium");
    let environment = Environment::new(env!("CARGO_BIN_EXE_lapstrake"));
    environment.write(
        "Dockerfile",
        "FROM --platform=$BUILDPLATFORM busybox AS build\nARG TARGETARCH\nRUN echo $TARGETARCH > /out\n\
         FROM scratch\nCOPY --from=build /out /\n",
    );
    let platforms = "--platform=linux/amd64,linux/arm64";
    environment.ok(["build", "-q", "-t", "app", platforms, "."]);
    environment.ok(["report", "-o", "page.html"]);
    let mut browser = Browser::start();
    for width in [400, 1280] {
        browser.look(width, 900, false);
        browser.open(&environment.work().join("page.html"));
        let wide = browser.evaluate("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{wide} at {width}"
        );
        // The first word of each name stands on one line.
        let rows = "[...document.querySelectorAll('.lane b')].map((name) => {
            const word = document.createRange();
            word.setStart(name.firstChild, 0);
            word.setEnd(name.firstChild, (name.firstChild.data + ' ').indexOf(' ') % (name.firstChild.length + 1));
            return word.getClientRects().length; })";
        let rows = browser.evaluate(rows);
        let rows = rows.as_array().unwrap();
        assert!(rows.len() > 4, "{rows:?}");
        assert!(rows.iter().all(|rows| *rows == 1), "{rows:?} at {width}");
        let text = browser.evaluate("document.querySelector('.lanes').innerText");
        for name in ["linux/amd64 ", "linux/arm64 "] {
            assert!(text.as_str().unwrap().contains(name), "{text}");
        }
    }
    assert_eq!(browser.complaints(), [""; 0]);
}
