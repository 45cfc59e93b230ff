//! Holding a GPU adapter to what a row's reference says.

use strata_engine::{Gpu, Tape, Tensor};
use strata_kernels::{Bodies, bodies, tape};

use crate::{Expected, Input, Probes, Random, Role, Row, compare, rms, tolerance};

/// How much of a row to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Everything.
    Full,
    /// One forward and one backward pass: for setups that differ little from one that was run in full.
    Light,
}

/// Runs a row and checks all an op promises: shape, dtype and values of the output; a gradient for every tracked
/// input and no other, accumulated into sinks where given; nothing recorded and nothing but the output kept when all
/// is frozen; guard words intact; the same bits in a second run; NaN handed on; all memory returned.
///
/// # Errors
/// The first promise broken: row, dtype, GEMM variant, the input, the worst index and both values.
pub fn check(row: &Row, expected: &Expected, gpu: &Gpu, effort: Effort) -> Result<(), String> {
    let run = Run { row, expected, gpu, tolerance: tolerance(expected.dtype, row.k) };
    run.all(effort).map_err(|e| {
        let arena = if gpu.caps().immediates { "" } else { ", no immediates" };
        format!(
            "{} [{}, {}{arena}]: {e}",
            row.name,
            expected.dtype.wgsl(),
            bodies(gpu).map_or("", Bodies::name)
        )
    })
}

/// Which inputs want a gradient, and where parameters put theirs.
struct Wanted<'a> {
    tracked: Vec<bool>,
    sinks: Vec<Option<&'a Tensor>>,
}

/// What a forward and backward pass left.
struct Outcome {
    out: Tensor,
    gradients: Vec<Option<Tensor>>,
}

struct Run<'a> {
    row: &'a Row,
    expected: &'a Expected,
    gpu: &'a Gpu,
    tolerance: f64,
}

impl Run<'_> {
    fn all(&self, effort: Effort) -> Result<(), String> {
        let before = self.gpu.stats().live_bytes;
        let inputs = self.upload()?;
        self.frozen(&inputs)?;
        let trackable: Vec<bool> = self.row.inputs.iter().map(|i| i.role != Role::Frozen).collect();
        if trackable.contains(&true) {
            let wanted = Wanted { tracked: trackable.clone(), sinks: vec![None; inputs.len()] };
            let outcome = self.back(&inputs, &wanted)?;
            self.judge(&inputs, &wanted, &outcome)?;
            if effort == Effort::Full {
                self.same_bits(&outcome, &self.back(&inputs, &wanted)?)?;
                self.one_by_one(&inputs, &trackable)?;
                self.sinks(&inputs, &trackable)?;
            }
        }
        if effort == Effort::Full {
            self.nan(&inputs)?;
        }
        drop(inputs);
        let after = self.gpu.stats().live_bytes;
        if after != before {
            return Err(format!("{} bytes are still alive after everything was dropped", after - before));
        }
        Ok(())
    }

    fn upload(&self) -> Result<Vec<Tensor>, String> {
        let upload = |(input, values): (&Input, &Vec<f32>)| {
            Tensor::from_f32(self.gpu, values, &input.shape, input.dtype(self.expected.dtype)).map_err(text)
        };
        self.row.inputs.iter().zip(&self.expected.inputs).map(upload).collect()
    }

    /// The output, from inputs of which none is tracked.
    fn frozen(&self, inputs: &[Tensor]) -> Result<(), String> {
        let tape = tape();
        let before = self.gpu.stats().live_bytes;
        let out = (self.row.run)(&tape, inputs, self.expected.dtype).map_err(text)?;
        let kept = self.gpu.stats().live_bytes - before;
        if !tape.is_empty() {
            return Err(format!("{} closures recorded although every input is frozen", tape.len()));
        }
        self.shape("the output", &out, &self.row.out, self.out_dtype())?;
        let twin = Tensor::empty(self.gpu, out.shape(), out.dtype()).map_err(text)?;
        let own = self.gpu.stats().live_bytes - before - kept;
        drop(twin);
        if kept != own {
            return Err(format!(
                "with every input frozen, {kept} bytes are alive after the call, but its output takes {own}"
            ));
        }
        let same = (self.row.run)(&tape, inputs, self.expected.dtype).map_err(text)?;
        if out.to_bytes().map_err(text)? != same.to_bytes().map_err(text)? {
            return Err("a second run gives other bits in the output".into());
        }
        self.output(&out)
    }

    fn output(&self, out: &Tensor) -> Result<(), String> {
        let want = &self.expected.out;
        compare("the output", &values(out)?, want, rms(want), self.tolerance)?;
        guarded("the output", out)
    }

    fn out_dtype(&self) -> strata_engine::DType {
        if self.row.out_f32 { strata_engine::DType::F32 } else { self.expected.dtype }
    }

    fn shape(
        &self,
        what: &str,
        found: &Tensor,
        shape: &[usize],
        dtype: strata_engine::DType,
    ) -> Result<(), String> {
        if found.shape() != shape || found.dtype() != dtype {
            return Err(format!("{what} is {found:?}, not {shape:?} {}", dtype.wgsl()));
        }
        Ok(())
    }

    /// Forward and backward with these inputs tracked.
    fn back(&self, inputs: &[Tensor], wanted: &Wanted<'_>) -> Result<Outcome, String> {
        let tape: Tape = tape();
        for (i, input) in inputs.iter().enumerate() {
            match wanted.sinks[i] {
                _ if !wanted.tracked[i] => {}
                Some(sink) => tape.track_into(input, sink),
                None => tape.track(input),
            }
        }
        let out = (self.row.run)(&tape, inputs, self.expected.dtype).map_err(text)?;
        let upstream =
            Tensor::from_f32(self.gpu, &self.expected.upstream, out.shape(), out.dtype()).map_err(text)?;
        let grads = tape.backward(&out, upstream).map_err(text)?;
        let gradients = inputs.iter().map(|input| grads.get(input).cloned()).collect();
        Ok(Outcome { out, gradients })
    }

    /// Checks the output and that each tracked input has its gradient, and no other input has one.
    fn judge(&self, inputs: &[Tensor], wanted: &Wanted<'_>, outcome: &Outcome) -> Result<(), String> {
        self.output(&outcome.out)?;
        for (i, input) in self.row.inputs.iter().enumerate() {
            let what = format!("the gradient of {}", input.name);
            let wants = wanted.tracked[i] && wanted.sinks[i].is_none();
            match (&outcome.gradients[i], &self.expected.gradients[i]) {
                (Some(_), _) if !wants => return Err(format!("{what} is there, but nobody tracks it")),
                (Some(gradient), Some(probes)) => {
                    let dtype = match input.role {
                        Role::Parameter => strata_engine::DType::F32,
                        Role::Tracked | Role::Frozen => inputs[i].dtype(),
                    };
                    self.shape(&what, gradient, &input.shape, dtype)?;
                    self.gradient(&what, i, &values(gradient)?, probes)?;
                    guarded(&what, gradient)?;
                }
                (None, _) if wants => return Err(format!("{what} is missing")),
                _ => {}
            }
        }
        Ok(())
    }

    fn gradient(&self, what: &str, input: usize, got: &[f64], probes: &Probes) -> Result<(), String> {
        let (chosen, want): (Vec<usize>, Vec<f64>) = probes.elements.iter().copied().unzip();
        let at_chosen: Vec<f64> = chosen.iter().map(|i| got[*i]).collect();
        compare(what, &at_chosen, &want, probes.scale, self.tolerance).map_err(|e| {
            if chosen.len() < got.len() { format!("{e}, of the elements {chosen:?}") } else { e }
        })?;
        for (direction, want) in &probes.directions {
            let along: f64 = direction.iter().zip(got).map(|(d, g)| d * g).sum();
            // errors of n elements add up like a random walk
            let scale = 2.0 * probes.scale * (got.len() as f64).sqrt();
            compare(what, &[along], &[*want], scale, self.tolerance)
                .map_err(|_| self.locate(what, input, got, direction))?;
        }
        Ok(())
    }

    /// The element behind a wrong sum: halves the direction, keeping the half that is further off.
    fn locate(&self, what: &str, input: usize, got: &[f64], direction: &[f64]) -> String {
        let exact = self.expected.exact();
        let derivative = |range: std::ops::Range<usize>| {
            let dense: Vec<(usize, f64)> = range.map(|i| (i, direction[i])).collect();
            self.expected.derivative(self.row, &exact, input, &dense)
        };
        let off = |range: std::ops::Range<usize>| {
            let along: f64 = range.clone().map(|i| direction[i] * got[i]).sum();
            let diff = (along - derivative(range)).abs();
            if diff.is_nan() { f64::INFINITY } else { diff }
        };
        let mut range = 0..got.len();
        while range.len() > 1 {
            let middle = range.start + range.len() / 2;
            range = if off(range.start..middle) >= off(middle..range.end) {
                range.start..middle
            } else {
                middle..range.end
            };
        }
        let i = range.start;
        let want = derivative(i..i + 1) / direction[i];
        format!("{what} along a random direction is off, most at index {i}: got {}, want {want}", got[i])
    }

    fn same_bits(&self, first: &Outcome, second: &Outcome) -> Result<(), String> {
        let bytes = |t: &Tensor| t.to_bytes().map_err(text);
        if bytes(&first.out)? != bytes(&second.out)? {
            return Err("a second run gives other bits in the output".into());
        }
        for (i, pair) in first.gradients.iter().zip(&second.gradients).enumerate() {
            if let (Some(a), Some(b)) = pair
                && bytes(a)? != bytes(b)?
            {
                return Err(format!(
                    "a second run gives other bits in the gradient of {}",
                    self.row.inputs[i].name
                ));
            }
        }
        Ok(())
    }

    /// Each input tracked alone: an op must not count on its other inputs being tracked.
    fn one_by_one(&self, inputs: &[Tensor], trackable: &[bool]) -> Result<(), String> {
        if trackable.iter().filter(|t| **t).count() < 2 {
            return Ok(());
        }
        for i in (0..inputs.len()).filter(|i| trackable[*i]) {
            let tracked = (0..inputs.len()).map(|j| j == i).collect();
            let wanted = Wanted { tracked, sinks: vec![None; inputs.len()] };
            let alone = |e| format!("with {} tracked alone, {e}", self.row.inputs[i].name);
            let outcome = self.back(inputs, &wanted).map_err(alone)?;
            self.judge(inputs, &wanted, &outcome).map_err(alone)?;
        }
        Ok(())
    }

    /// Parameters with sinks that already hold something: gradients are added to it.
    fn sinks(&self, inputs: &[Tensor], trackable: &[bool]) -> Result<(), String> {
        let mut random = Random::new(&format!("{} sinks", self.row.name));
        let mut sinks: Vec<Option<(Tensor, Vec<f32>)>> = Vec::new();
        for (input, probes) in self.row.inputs.iter().zip(&self.expected.gradients) {
            sinks.push(match probes {
                Some(probes) if input.role == Role::Parameter => {
                    let before: Vec<f32> =
                        random.normal(input.values.len()).iter().map(|v| v * probes.scale as f32).collect();
                    Some((
                        Tensor::from_f32(self.gpu, &before, &input.shape, strata_engine::DType::F32)
                            .map_err(text)?,
                        before,
                    ))
                }
                _ => None,
            });
        }
        if sinks.iter().all(Option::is_none) {
            return Ok(());
        }
        let places = sinks.iter().map(|s| s.as_ref().map(|s| &s.0)).collect();
        let wanted = Wanted { tracked: trackable.to_vec(), sinks: places };
        let outcome = self.back(inputs, &wanted)?;
        self.judge(inputs, &wanted, &outcome)?;
        for (i, sink) in sinks.iter().enumerate() {
            if let (Some((sink, before)), Some(probes)) = (sink, &self.expected.gradients[i]) {
                let what = format!("what the sink of {} gained", self.row.inputs[i].name);
                let gained: Vec<f64> =
                    values(sink)?.iter().zip(before).map(|(a, b)| a - f64::from(*b)).collect();
                self.gradient(&what, i, &gained, probes)?;
                guarded(&what, sink)?;
            }
        }
        Ok(())
    }

    /// NaN in an input reaches every output that depends on it.
    fn nan(&self, inputs: &[Tensor]) -> Result<(), String> {
        for (i, input) in self.row.inputs.iter().enumerate() {
            let (at, wanted) = &self.expected.nan[i];
            let mut poisoned = self.expected.inputs[i].clone();
            poisoned[*at] = f32::NAN;
            let mut inputs = inputs.to_vec();
            inputs[i] =
                Tensor::from_f32(self.gpu, &poisoned, &input.shape, inputs[i].dtype()).map_err(text)?;
            let out = values(&(self.row.run)(&Tape::off(), &inputs, self.expected.dtype).map_err(text)?)?;
            if let Some(k) = (0..out.len()).find(|k| wanted[*k] && !out[*k].is_nan()) {
                return Err(format!(
                    "NaN at index {at} of {} does not reach the output at index {k}, which is {}",
                    input.name, out[k]
                ));
            }
        }
        Ok(())
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f64>, String> {
    Ok(tensor.to_f32().map_err(text)?.into_iter().map(f64::from).collect())
}

fn guarded(what: &str, tensor: &Tensor) -> Result<(), String> {
    match tensor.guards_intact().map_err(text)? {
        true => Ok(()),
        false => Err(format!("{what} has its guard words overwritten: a kernel wrote past the end")),
    }
}

fn text(e: strata_engine::Error) -> String {
    e.to_string()
}
