//! What came out, as text, JSON and a page.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::Value;

use super::files::put;
use super::pictures::{Album, TAGS, Way, title};
use super::rest::{distance, obeyed};
use super::unseen::Unseen;

/// All numbers of a demo.
#[derive(Serialize)]
pub struct Report {
    pub strata_version: &'static str,
    /// The GPU adapter.
    pub adapter: String,
    /// Times that the model was run for a picture.
    pub sampling_steps: u16,
    /// Mean score of the pictures that each feature was learned from, by tag.
    pub training_scores: BTreeMap<&'static str, f64>,
    pub scores: Vec<Score>,
    /// Pictures without a tag, by Strata, and how many of them are the base model's, bit for bit.
    pub without_tag: usize,
    pub bit_equal: usize,
    pub leaks: Vec<Leak>,
    /// Of each stage that was run.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// Mean scores of the pictures of one way and one set of tags.
#[derive(Serialize)]
pub struct Score {
    pub way: &'static str,
    /// In the prompts.
    pub tags: Vec<&'static str>,
    pub pictures: usize,
    /// By feature.
    pub scores: BTreeMap<&'static str, f64>,
    /// Of what the prompts ask for beside the features, the share that is there.
    pub obeyed: f64,
    /// Mean distance from the base model's picture without tags, where none of the features is; values in −1 to 1.
    pub distance: f64,
}

/// How far the model's predictions move without the tag, as a share of how far they move with it.
#[derive(Serialize)]
pub struct Leak {
    pub feature: &'static str,
    /// Strata's LoRA behind its gate.
    pub gated: f64,
    /// The same file, always on.
    pub always: f64,
    /// The ordinary LoRA, always on.
    pub plain: f64,
}

impl Leak {
    /// What two probes in the demo's folder found.
    pub fn read(folder: &Path) -> Result<Vec<Self>> {
        let [ours, plain] =
            ["probe", "probe-plain"].map(|name| Self::probe(&folder.join(name).join("probe.json")));
        let (ours, plain) = (ours?, plain?);
        let leak = |(i, feature): (usize, Unseen)| {
            let of = |probe: &Value, gate: &str| {
                let gates = probe["features"][i]["gates"].as_array().into_iter().flatten();
                let leak =
                    gates.filter(|matrix| matrix["gate"] == gate).find_map(|matrix| matrix["leak"].as_f64());
                leak.with_context(|| format!("the probe has no leak of {} with gate {gate}", feature.tag()))
            };
            Ok(Self {
                feature: feature.tag(),
                gated: of(&ours, "prompt")?,
                always: of(&ours, "always")?,
                plain: of(&plain, "always")?,
            })
        };
        Unseen::ALL.into_iter().enumerate().map(leak).collect()
    }

    fn probe(path: &Path) -> Result<Value> {
        let context = || format!("cannot read {}; run `strata demo` without --pictures-only", path.display());
        serde_json::from_slice(&fs::read(path).with_context(context)?).with_context(context)
    }
}

fn mean(scores: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = scores.len().max(1) as f64;
    scores.sum::<f64>() / count
}

impl Report {
    pub fn new(
        album: &Album,
        adapter: String,
        sampling_steps: u16,
        leaks: Vec<Leak>,
        seconds: BTreeMap<&'static str, f64>,
    ) -> Result<Self> {
        let training = |feature: Unseen| Ok((feature.tag(), mean(feature.training_scores()?.into_iter())));
        let score = |series: &super::pictures::Series| {
            let of = |feature: Unseen| {
                (feature.tag(), mean(series.pictures.iter().map(|picture| feature.score(picture))))
            };
            let base = album.of(Way::Base, &[]).into_iter().flat_map(|base| &base.pictures);
            let distances = base.zip(&series.pictures).map(|(base, own)| distance(base, own, series.tags));
            let said = series.pictures.iter().zip(&series.prompts);
            let [shown, asked] = said.fold([0, 0], |[shown, asked], (picture, prompt)| {
                let [s, a] = obeyed(picture, prompt, series.tags);
                [shown + s, asked + a]
            });
            Score {
                obeyed: shown as f64 / asked.max(1) as f64,
                distance: mean(distances.collect::<Vec<_>>().into_iter()),
                way: series.way.name(),
                tags: series.tags.iter().map(|feature| feature.tag()).collect(),
                pictures: series.pictures.len(),
                scores: Unseen::ALL.map(of).into(),
            }
        };
        let silent = album.series.iter().find(|series| series.way == Way::Gated && series.tags.is_empty());
        Ok(Self {
            strata_version: env!("CARGO_PKG_VERSION"),
            adapter,
            sampling_steps,
            training_scores: Unseen::ALL.into_iter().map(training).collect::<Result<_>>()?,
            scores: album.series.iter().map(score).collect(),
            without_tag: silent.map_or(0, |series| series.pictures.len()),
            bit_equal: album.untouched(Way::Gated),
            leaks,
            seconds,
        })
    }

    /// By way (rows) and tags (columns).
    fn table(&self, cell: impl Fn(&Score) -> String) -> Vec<(&'static str, Vec<String>)> {
        let of = |way: Way| self.scores.iter().filter(move |score| score.way == way.name());
        Way::ALL.map(|way| (way.name(), of(way).map(&cell).collect())).into()
    }

    /// How much of A and of B the pictures show.
    fn shown(&self) -> Vec<(&'static str, Vec<String>)> {
        self.table(|score| Unseen::ALL.map(|feature| format!("{:.3}", score.scores[feature.tag()])).join(" "))
    }

    /// What becomes of the rest.
    fn rest(&self) -> Vec<(&'static str, Vec<String>)> {
        self.table(|score| format!("{:.0} % {:.3}", 100.0 * score.obeyed, score.distance))
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (what, rows) in [("how much of A, B", self.shown()), ("of the rest", self.rest())] {
            text += &format!("\n{what:<18}");
            TAGS.iter().for_each(|tags| text += &format!("{:<18}", title(tags)));
            for (way, cells) in rows {
                text += &format!("\n{way:<18}");
                cells.iter().for_each(|cell| text += &format!("{cell:<18}"));
            }
            text += "\n";
        }
        let [a, b] = Unseen::ALL.map(|feature| self.training_scores[feature.tag()]);
        text += &format!(
            "\nA = {}, B = {}; pictures that they were learned from: A {a:.3}, B {b:.3}\n\
             of the rest: how much of the background and colours asked for is there, and how far the picture is from the base \
             model's\nwithout tags where the features are not (values in -1 to 1)\n\
             without a tag, {} of {} pictures by Strata are the base model's, bit for bit\n\n",
            Unseen::HairStyleA.tag(),
            Unseen::ClothingStyleB.tag(),
            self.bit_equal,
            self.without_tag,
        );
        text +=
            &format!("{:<18}{:<18}{:<18}{:<18}\n", "leak", Way::Gated.name(), "always on", Way::Plain.name());
        for Leak { feature, gated, always, plain } in &self.leaks {
            text += &format!("{feature:<18}{gated:<18.3}{always:<18.3}{plain:<18.3}\n");
        }
        text + &format!("\nseconds: {}\n", self.stages())
    }

    /// How long each stage took.
    fn stages(&self) -> String {
        let stages = self.seconds.iter().map(|(stage, seconds)| format!("{stage} {seconds:.0}"));
        stages.collect::<Vec<_>>().join(", ")
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Writes `demo.json` and `report.html`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        put(&folder.join("demo.json"), self.to_json()?.as_bytes())?;
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_template("report.html", include_str!("report.html"))?;
        let three = |number: f64| format!("{number:.3}");
        let leak = |leak: &Leak| {
            let numbers = [leak.gated, leak.always, leak.plain].map(three);
            context! { feature => leak.feature, numbers => numbers }
        };
        let learned = Unseen::ALL.map(|f| format!("{} ({})", three(self.training_scores[f.tag()]), f.tag()));
        let page = environment.get_template("report.html")?.render(context! {
            columns => TAGS.map(title),
            shown => self.shown(),
            rest => self.rest(),
            learned => learned.join(" and "),
            bit_equal => self.bit_equal,
            without_tag => self.without_tag,
            leaks => self.leaks.iter().map(leak).collect::<Vec<_>>(),
            adapter => &self.adapter,
            seconds => self.stages(),
        })?;
        put(&folder.join("report.html"), page.as_bytes())
    }
}
