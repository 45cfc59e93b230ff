//! The report as text, as JSON and as a page.

use serde_json::Value;
use strata_trainer::lint::{Report, Severity};

use super::set::{Content, Set, name};
use crate::support::well_formed;

const ATTACK: &str = r#"<script>alert("&amp; 'x'")</script>"#;

/// A set with faults of several kinds, and names and captions that no page may take for its own.
fn faulty() -> Set {
    let mut set = Set::clean();
    set.coat.name = "<i>coat</i>";
    set.coat.tags.push("<u>".into());
    set.hair
        .shots
        .iter_mut()
        .for_each(|shot| shot.caption = shot.caption.to_lowercase().replace("zxqv", "tag"));
    set.hair.shots[0].caption = format!("zxqv {ATTACK} zxqv");
    set.hair.shots[2].caption = "Cafe\u{301} ☕, naïve ZXQV 東京".into();
    set.coat.shots[1].content = Content::Bytes(b"no picture".into());
    set
}

fn codes(report: &Report, severity: Severity) -> Vec<String> {
    let findings = report.findings.iter().filter(|finding| finding.severity == severity);
    findings.map(|finding| finding.code.to_string()).collect()
}

#[test]
fn text_tells_each_finding_in_short_lines() {
    let mut set = faulty();
    set.hair.shots[3].file = format!("{}.png", "long".repeat(60));
    let report = set.lint();
    let text = report.to_text();
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{} characters: {line}", line.chars().count());
    }
    // lines are broken at any blank, and long names anywhere
    let solid = |text: &str| text.split_whitespace().collect::<String>();
    let all = solid(&text);
    for finding in &report.findings {
        assert!(
            all.contains(&solid(&format!("{}{}:{}", finding.severity, finding.code, finding.message))),
            "{text}"
        );
        for file in finding.files.iter().take(8) {
            let note = file.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
            let told = format!("{}{note}", name(&file.path));
            assert!(all.contains(&solid(&told)), "{told} is not in\n{text}");
        }
    }
    assert!(text.contains("and 2 more"), "10 captions lack the tag:\n{text}");
    let features: Vec<&str> = text.lines().filter(|line| line.starts_with("feature")).collect();
    let [hair, coat] = &features[..] else { panic!("two features: {features:?}") };
    assert!(hair.starts_with("feature hair: 12 pictures in ") && hair.ends_with(", tag `zxqv`"), "{hair}");
    assert!(coat.starts_with("feature <i>coat</i>: 8 pictures in "), "{coat}");
    let (errors, warnings) = (report.errors().count(), report.warnings().count());
    assert_eq!((errors, warnings), (2, codes(&report, Severity::Warning).len()));
    assert!(
        text.trim_end().lines().last().unwrap().starts_with(&format!("{errors} errors, {warnings} warning"))
    );
    let twins = |set: &mut Set, a: usize, b: usize| *set.hair.pixels(b) = set.hair.pixels(a).clone();
    let mut set = Set::clean();
    twins(&mut set, 0, 1);
    twins(&mut set, 2, 3);
    let text = set.lint().to_text();
    assert_eq!(text.matches("duplicate-picture").count(), 1, "the same message, once:\n{text}");
    assert!(text.contains("      h0.png, h1.png\n      h2.png, h3.png\n"), "{text}");
    let mut set = Set::clean();
    set.hair.shots[3].caption += &" the".repeat(80);
    let report = set.lint();
    let text = report.to_text();
    assert_eq!((report.errors().count(), report.warnings().count()), (0, 0));
    assert!(text.contains("note long-caption: ") && text.contains("tokens in 2 chunks)"), "{text}");
    assert_eq!(text.lines().last(), Some("0 errors, 0 warnings, 1 note"));
    let clean = Set::clean().lint().to_text();
    assert_eq!(clean.lines().last(), Some("0 errors, 0 warnings"));
}

#[test]
fn json_says_the_same() {
    let report = faulty().lint();
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), report.findings.len());
    for (read, finding) in findings.iter().zip(&report.findings) {
        assert_eq!(read["severity"], finding.severity.to_string());
        assert_eq!(read["code"], finding.code.to_string());
        assert_eq!(read["feature"], finding.feature);
        assert_eq!(read["message"], finding.message);
        let files: Vec<_> = read["files"].as_array().unwrap().iter().map(|f| f["path"].clone()).collect();
        assert_eq!(files, finding.files.iter().map(|f| f.path.display().to_string()).collect::<Vec<_>>());
    }
    let hair = &json["features"][0];
    assert_eq!((&hair["name"], &hair["pictures"], &hair["errors"]), (&"hair".into(), &12.into(), &1.into()));
    let tokens: Vec<_> = hair["tags"][0]["tokens"].as_array().unwrap().iter().map(|t| &t["piece"]).collect();
    assert_eq!(tokens, ["z", "x", "q", "v</w>"]);
    let nearest = hair["tags"][0]["nearest"].as_array().unwrap();
    let cosines: Vec<f64> = nearest.iter().map(|word| word["cosine"].as_f64().unwrap()).collect();
    assert_eq!(cosines.len(), 3);
    assert!(cosines.is_sorted_by(|a, b| a >= b) && cosines[0] < 1.0 && cosines[2] > 0.0, "{cosines:?}");
}

/// The tags of the template that are closed.
const TAGS: [&str; 19] = [
    "html", "head", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td",
    "div", "span", "mark", "ul", "li",
];

#[test]
fn the_page_shows_every_picture_and_escapes_everything() {
    let set = faulty();
    let report = set.lint();
    let page = report.to_html();
    well_formed(&page, &TAGS);
    assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "the caption is text");
    assert!(page.contains("&lt;i&gt;coat&lt;&#x2f;i&gt;"), "so is the feature's name");
    assert!(page.contains("<mark>zxqv</mark> &lt;script&gt;"), "the tag is highlighted");
    assert!(
        page.contains("☕, naïve <mark>ZXQV</mark> 東京"),
        "its place is counted in bytes, whatever the letters"
    );
    assert_eq!(page.matches("<mark>zxqv</mark>").count(), 3, "twice in one caption, and once as the tag");
    for shot in set.hair.shots.iter().chain(&set.coat.shots) {
        assert!(page.contains(&format!(">{}</p>", shot.file)), "no card of {}", shot.file);
    }
    assert_eq!(page.matches("<img ").count(), 19, "one of 20 cannot be read");
    assert_eq!(page.matches("cannot be read</div>").count(), 1);
    assert_eq!(page.matches("data:image/jpeg;base64,/9j/").count(), 19, "JPEGs");
    for finding in &report.findings {
        let lines = page.matches(&format!(">{}<", finding.code)).count();
        assert!(lines > finding.files.len(), "{} is in the table and beside its pictures", finding.code);
    }
    let cards = page.split("<ul class=\"cards\">").nth(1).unwrap();
    let (_, card) = cards.split_once(">h1.png<").unwrap();
    assert!(card.split(">h2.png<").next().unwrap().contains(">missing-tag<"));
    assert!(page.contains("prefers-color-scheme: dark"));
    well_formed(&Set::clean().lint().to_html(), &TAGS);
}
