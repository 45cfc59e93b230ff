//! What features are taught with, made before the U-Net is there.

use std::collections::{BTreeMap, BTreeSet};

use strata_engine::DType;
use strata_model::counted;
use strata_model::progress::waiting;

use crate::Result;
use crate::data::latents::Latents;
use crate::data::texts::Texts;
use crate::features::silence::{Basis, basis};
use crate::inspection::probe::Script;
use crate::training::keys::find_keys;
use crate::training::plan::Plan;
use crate::training::run::Run;
use crate::training::watch::script;

/// What features are taught with, computed before the U-Net is there.
pub(crate) struct Materials {
    pub texts: Texts,
    /// Of each feature that is due.
    pub features: BTreeMap<usize, Material>,
    /// They stand for others of their size, to see what memory a run takes. Frozen features are then such as well, and on
    /// whatever a text says.
    pub blank: bool,
}

/// Of one feature.
pub(crate) struct Material {
    pub latents: Latents,
    pub basis: Option<Basis>,
    /// Where features are probed.
    pub script: Option<Script>,
}

impl Run<'_> {
    /// Runs text encoder and VAE once over all that is due.
    pub fn prepare(&mut self) -> Result<Materials> {
        let reading = waiting("reading text encoder and VAE");
        // in f32 whatever the run's number format is: they run once, and some VAEs overflow f16
        let text = self.checkpoint.text_encoder(self.gpu, DType::F32)?;
        let vae = self.checkpoint.vae(self.gpu, DType::F32)?;
        drop(reading);
        let mut keyed = find_keys(self, &text)?;
        let tags = self.tags();
        let (mut wanted, mut features) = (BTreeSet::new(), BTreeMap::new());
        for class in self.classes() {
            let attached: Vec<&Plan> =
                self.earlier(&class).iter().chain(class.iter().map(|i| &self.plans[*i])).collect();
            for i in class {
                let plan = &self.plans[i];
                wanted.extend(plan.texts());
                let latents = Latents::encode(self.gpu, &vae, &plan.dataset, plan.feature.dataset.flip)?;
                let silence = plan.feature.silence.as_ref();
                let basis = match keyed.remove(&i) {
                    Some(basis) => Some(basis),
                    None => {
                        silence.map(|silence| basis(&text, &plan.silent, &tags, silence.rank)).transpose()?
                    }
                };
                let probed = self.config.train.probe_every > 0;
                let script = probed.then(|| script(&text, &attached)).transpose()?;
                features.insert(i, Material { latents, basis, script });
            }
        }
        Ok(Materials { texts: Texts::encode(&text, &wanted, &tags)?, features, blank: false })
    }

    /// Captions that the text encoder reads in several pieces.
    pub fn long_captions(&self, texts: &Texts) -> Result<Option<String>> {
        let (mut long, mut all) = (0, 0);
        for picture in self.plans.iter().filter(|plan| plan.due).flat_map(|plan| plan.dataset.pictures()) {
            long += usize::from(texts.chunks([picture.caption.as_str()])? > 1);
            all += 1;
        }
        let how = "longer than the text encoder's window of 75 tokens, and read in several windows, as at generation";
        let are = if long == 1 { "is" } else { "are" };
        Ok((long > 0).then(|| format!("{long} of {} {are} {how}", counted(all, "caption"))))
    }
}
