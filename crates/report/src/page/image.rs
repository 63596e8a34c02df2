//! What was made: layers with their files, and the configuration.

use serde_json::Value;

use super::{Image, ImageFile, LayerContent, Page, Section};
use crate::escape::{cut, markup};
use crate::words;

/// More layers than that are not shown; an image has at most about 120.
const MOST_LAYERS: usize = 300;

/// More things from outside than that are not shown, and no more arguments.
const MOST_INPUTS: usize = 200;

pub(super) fn layers(page: &Page<'_>) -> Option<Section> {
    let images = page.images.iter().filter(|image| !image.layers.is_empty());
    let mut body = String::new();
    let (mut wasted, mut is_known) = (0, true);
    for image in images {
        for layer in &image.layers {
            wasted += layer.content.as_ref().map_or(0, |content| content.wasted);
            is_known &= layer.content.is_some();
        }
        if page.images.len() > 1 {
            body.push_str(&format!("<h3>{}</h3>\n", markup(&image.platform)));
        }
        body.push_str(&layer_list(image));
    }
    if body.is_empty() {
        return None;
    }
    let aside = match wasted {
        0 if !is_known => String::new(),
        0 => "<p>Nothing is carried for nothing</p>".to_owned(),
        wasted => format!(
            "<p class=\"waste\">{} are carried for nothing</p>",
            words::size(wasted)
        ),
    };
    Some(Section {
        id: "layers",
        short: "Layers",
        title: "Layers",
        aside,
        body,
    })
}

fn layer_list(image: &Image) -> String {
    let most = image
        .layers
        .iter()
        .map(|layer| layer.size)
        .max()
        .unwrap_or(0)
        .max(1);
    let layers = image.layers.iter().take(MOST_LAYERS).enumerate();
    let layers = layers.map(|(number, layer)| {
        let share = |bytes: u64| bytes as f64 * 100.0 / most as f64;
        let wasted = layer.content.as_ref().map_or(0, |content| content.wasted);
        let waste = match wasted {
            0 => String::new(),
            wasted => format!("<span class=\"chip waste\">{} wasted</span>", words::size(wasted)),
        };
        format!(
            "<li><details class=\"layer\"><summary><span class=\"number\">{}</span><code>{}</code>{waste}\
             <span class=\"size\">{}</span>\
             <svg width=\"100%\" height=\"6\" aria-hidden=\"true\"><rect class=\"track\" width=\"100%\" height=\"6\" rx=\"3\"/>\
             <rect class=\"content\" width=\"{:.2}%\" height=\"6\" rx=\"3\"/><rect class=\"wasted\" width=\"{:.2}%\" height=\"6\" rx=\"3\"/></svg>\
             </summary>\n<div class=\"inside\">{}</div></details></li>\n",
            number + 1,
            markup(&cut(&crate::escape::one_line(&layer.made_by), 400)),
            words::size(layer.size),
            share(layer.size),
            share(wasted),
            match &layer.content {
                Some(content) => files(content),
                None => "<p class=\"quiet\">It is not in the store any more.</p>".to_owned(),
            },
        )
    });
    format!("<ol class=\"layers\">{}</ol>\n", layers.collect::<String>())
}

fn files(layer: &LayerContent) -> String {
    let table = |caption: String, files: &[ImageFile], all: usize| {
        if files.is_empty() {
            return String::new();
        }
        let rows = files.iter().map(|file| {
            let note = match file.note.as_str() {
                "" => String::new(),
                note => format!(" <span>{}</span>", markup(note)),
            };
            format!(
                "<tr><td><code>{}</code>{note}</td><td class=\"size\">{}</td></tr>",
                markup(&cut(&file.path, 300)),
                words::size(file.size)
            )
        });
        let rows = rows.collect::<String>();
        let more = match all.saturating_sub(files.len()) {
            0 => String::new(),
            more => format!(
                "<p class=\"quiet\">and {}</p>",
                words::count(more, "smaller file")
            ),
        };
        format!(
            "<table><caption>{caption}</caption><thead><tr><th scope=\"col\">File</th><th scope=\"col\" class=\"size\">Size</th></tr></thead>\
             <tbody>{rows}</tbody></table>{more}"
        )
    };
    let shown = table(
        words::count(layer.files, "file"),
        &layer.largest,
        layer.files,
    );
    let wasted = table(
        format!("Hidden by layers above: {}", words::size(layer.wasted)),
        &layer.wasteful,
        layer.hidden,
    );
    match (shown.is_empty(), wasted.is_empty()) {
        (true, true) => "<p class=\"quiet\">It has no files.</p>".to_owned(),
        _ => format!("{wasted}{shown}"),
    }
}

pub(super) fn configuration(page: &Page<'_>) -> Option<Section> {
    let record = page.record;
    let mut body = String::new();
    for image in &page.images {
        if page.images.len() > 1 {
            body.push_str(&format!("<h3>{}</h3>\n", markup(&image.platform)));
        }
        body.push_str(&one_configuration(image));
    }
    let mut inputs: Vec<(String, String)> = Vec::new();
    for source in record.sources.iter().take(MOST_INPUTS) {
        let name = source.name();
        let digest = source.digest.as_ref().map(ToString::to_string);
        inputs.push((cut(name, 200), code(&digest.unwrap_or_default())));
    }
    let arguments = &record.request.build_args;
    for (name, value) in arguments.iter().take(MOST_INPUTS) {
        let value = match value.starts_with("hidden:") {
            true => "(hidden)",
            false => value,
        };
        inputs.push((format!("ARG {name}"), code(value)));
    }
    if !inputs.is_empty() {
        body.push_str("<h3>What it was made from</h3>\n");
        body.push_str(&definitions(&inputs));
        let all = record.sources.len() + arguments.len();
        body.push_str(&words::rest(all - inputs.len(), "input"));
    }
    if body.is_empty() {
        return None;
    }
    Some(Section {
        id: "configuration",
        short: "Configuration",
        title: "Configuration",
        aside: String::new(),
        body,
    })
}

fn one_configuration(image: &Image) -> String {
    let mut rows = vec![
        ("Image".to_owned(), code(&image.id)),
        ("Platform".to_owned(), code(&image.platform)),
    ];
    let Some(config) = &image.config else {
        let gone = "<p class=\"quiet\">The image is not in the store any more.</p>\n";
        return definitions(&rows) + gone;
    };
    let fields = serde_json::to_value(&config.config).unwrap_or_default();
    for (name, value) in fields.as_object().into_iter().flatten() {
        rows.push((name.clone(), shown(value)));
    }
    definitions(&rows)
}

/// Shows a value of the configuration.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items = items.iter().take(500).map(shown);
            items.collect::<Vec<_>>().join("<br>")
        }
        Value::Object(fields) => {
            let fields = fields.iter().take(500).map(|(name, value)| match value {
                Value::Object(inner) if inner.is_empty() => code(name),
                value => format!("{} {}", code(name), shown(value)),
            });
            fields.collect::<Vec<_>>().join("<br>")
        }
        Value::String(text) => code(text),
        Value::Null => String::new(),
        other => code(&other.to_string()),
    }
}

fn code(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("<code>{}</code>", markup(&cut(text, 2000))),
    }
}

/// Lists names, which are escaped here, with values, which are markup already.
fn definitions(rows: &[(String, String)]) -> String {
    let rows = rows
        .iter()
        .map(|(name, value)| format!("<div><dt>{}</dt><dd>{value}</dd></div>", markup(name)));
    format!(
        "<dl class=\"facts wide\">{}</dl>\n",
        rows.collect::<String>()
    )
}
