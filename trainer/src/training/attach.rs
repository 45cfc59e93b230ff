//! From what is prepared to features that can take steps.

use strata_model::{LoraSet, LoraWeights, Unet};

use crate::data::latents::Latents;
use crate::features::silence::Silence;
use crate::inspection::probe::Script;
use crate::training::learner::Learner;
use crate::training::materials::Materials;
use crate::training::plan::Plan;
use crate::training::pupil::Pupil;
use crate::training::run::Run;
use crate::training::step::Lesson;
use crate::training::watch::Watch;
use crate::{Error, Result, kaiming_uniform, noise};

impl Run<'_> {
    /// Puts the LoRAs of a class on the U-Net, beside those of earlier features. Side by side each has batches, gradients
    /// and moments of its own, and the others are off in its samples; so its file is the one that it would have alone.
    pub fn attach<'r>(
        &'r self,
        class: &[usize],
        materials: &'r Materials,
        unet: &mut Unet,
    ) -> Result<Vec<Pupil<'r>>> {
        unet.detach_all();
        let earlier = self.earlier(class);
        let frozen = earlier
            .iter()
            .map(|before| match materials.blank {
                true => self.fresh(before),
                false => self.frozen(before, &self.plans[class[0]], unet),
            })
            .collect::<Result<Vec<_>>>()?;
        let own = class.iter().map(|i| self.fresh(&self.plans[*i])).collect::<Result<Vec<_>>>()?;
        for set in frozen.iter().chain(&own) {
            unet.attach(set)?;
        }
        let pupil = |(place, lora): (usize, LoraSet)| {
            let (i, number) = (class[place], frozen.len() + place);
            let (plan, material) = (&self.plans[i], &materials.features[&i]);
            let learner = Learner::new(&lora, number, self.dtype, &self.config.train)?;
            let disjoint = plan.feature.silence.as_ref().is_some_and(|silence| silence.disjoint);
            let disjoint: Vec<&LoraSet> = frozen.iter().filter(|_| disjoint).collect();
            let silence =
                material.basis.as_ref().map(|basis| Silence::new(basis, &lora, &disjoint)).transpose()?;
            let watch = match &material.script {
                Some(script) => Some(self.watch(script, number, &material.latents, unet)?),
                None => None,
            };
            let sets = unet.features();
            let lesson = self.lesson(plan, materials, &material.latents, earlier, [number, sets])?;
            Ok(Pupil::new(self, plan, lora, lesson, learner, silence, watch))
        };
        own.into_iter().enumerate().map(pupil).collect()
    }

    /// `[number, sets]`: the feature's LoRA is that number of so many sets.
    fn lesson<'r>(
        &'r self,
        plan: &'r Plan,
        materials: &'r Materials,
        latents: &'r Latents,
        earlier: &[Plan],
        [number, sets]: [usize; 2],
    ) -> Result<Lesson<'r>> {
        // which sets are on in a text: the feature's own always, earlier ones where their tags are, and no other
        let gates = |text: String| -> Result<(String, Vec<f32>)> {
            let mut gates = vec![0.0; sets];
            gates[number] = 1.0;
            for (gate, before) in gates.iter_mut().zip(earlier) {
                if materials.blank || before.tags.are_in(&text)? {
                    *gate = 1.0;
                }
            }
            Ok((text, gates))
        };
        Ok(Lesson {
            config: self.config,
            feature: &plan.feature,
            seed: noise::feature_seed(self.config.seed, &plan.feature.name),
            captions: plan.dataset.pictures().iter().map(|p| p.caption.as_str()).collect(),
            latents,
            texts: &materials.texts,
            preservation: &plan.preservation,
            schedule: &self.schedule,
            gates: plan.texts().into_iter().map(gates).collect::<Result<_>>()?,
        })
    }

    fn watch(&self, script: &Script, own: usize, latents: &Latents, unet: &Unet) -> Result<Watch> {
        Watch::new(self.gpu, self.config, unet, script.clone(), own, &self.schedule, latents, self.dtype)
    }

    fn fresh(&self, plan: &Plan) -> Result<LoraSet> {
        let seed = noise::feature_seed(self.config.seed, &plan.feature.name);
        Ok(LoraSet::init(self.gpu, self.dtype, &plan.matches, |path, fan_in, down| {
            kaiming_uniform(seed, path, fan_in, down);
        })?)
    }

    /// A feature that was trained before, from its file.
    fn frozen(&self, before: &Plan, stage: &Plan, unet: &Unet) -> Result<LoraSet> {
        let file = before.feature.file();
        if !file.is_file() {
            return Err(Error::Dataset(format!(
                "{} learns beside {}, whose file {} is not there; train that first, or set with_frozen = false",
                stage.feature.name,
                before.feature.name,
                file.display()
            )));
        }
        Ok(LoraSet::from_weights(self.gpu, self.dtype, &LoraWeights::read(file)?, unet)?)
    }
}
