//! From the tensors of one module to a [`LoraModule`], whatever its kind.
//!
//! LoRA, LoCon and Tucker's form of it are branches as they are. LoHa, LoKr and full differences are not: they are multiplied out
//! to ΔW, which is a branch of full rank by itself, `down` = ΔW and `up` = 1.

use std::collections::BTreeMap;

use crate::LoraModule;

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Down,
    Up,
    Mid,
    Alpha,
    /// Norms of rows, [out] or [out, 1, …].
    Magnitude,
    /// The same, [out] or [1, out, 1, 1].
    MagnitudeVector,
    Diff,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
}

/// Values, row-major, with their shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The tensors of a module.
pub(super) type Tensors = BTreeMap<Role, Array>;

/// Puts a module together. `alpha` is asked for the alpha of a rank where there is no tensor of it. The error says what is wrong with
/// the module.
pub(super) fn compose(mut tensors: Tensors, alpha: impl Fn(usize) -> f32) -> Result<LoraModule, String> {
    let given = tensors.remove(&Role::Alpha).map(|alpha| match alpha.values[..] {
        [value] if value.is_finite() => Ok(value),
        _ => Err(format!(
            ".alpha must be one finite number, not {:?} of shape {:?}",
            alpha.values, alpha.shape
        )),
    });
    let given = given.transpose()?;
    let scale = |rank: usize| given.unwrap_or_else(|| alpha(rank)) / rank as f32;
    let magnitude = magnitudes(&mut tensors)?;
    let has = |roles: &[Role]| tensors.keys().any(|role| roles.contains(role));
    let mut module = if has(&[Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B]) {
        loha(&mut tensors, scale)?
    } else if has(&[Role::LokrW1, Role::LokrW1A, Role::LokrW2, Role::LokrW2A]) {
        lokr(&mut tensors, scale)?
    } else if has(&[Role::Diff]) {
        dense(take(&mut tensors, Role::Diff, "diff")?, 1.0)?
    } else {
        let mut down = take(&mut tensors, Role::Down, "the lower half (lora_down, lora_A)")?;
        let up = take(&mut tensors, Role::Up, "the upper half (lora_up, lora_B)")?;
        let rank = down.shape.first().copied().unwrap_or(0);
        if let Some(mid) = tensors.remove(&Role::Mid) {
            down = through(&mid, &down)?;
        }
        let alpha = given.unwrap_or_else(|| alpha(rank));
        // with Tucker's form `down` may have come to have another rank than alpha was meant for
        let alpha = if down.shape.first() == Some(&rank) {
            alpha
        } else {
            alpha / rank as f32 * down.shape[0] as f32
        };
        LoraModule {
            down: down.values,
            down_shape: down.shape,
            up: up.values,
            up_shape: up.shape,
            alpha,
            magnitude: None,
        }
    };
    if let Some(role) = tensors.keys().next() {
        return Err(format!(
            "has tensors of two kinds of adaptation: {role:?} does not belong to the others"
        ));
    }
    if let Some(magnitude) = &magnitude
        && module.up_shape.first() != Some(&magnitude.len())
    {
        let (count, up) = (magnitude.len(), &module.up_shape);
        return Err(format!("has {count} magnitudes for lora_up {up:?}; there must be one for each output"));
    }
    module.magnitude = magnitude;
    Ok(module)
}

fn take(tensors: &mut Tensors, role: Role, name: &str) -> Result<Array, String> {
    tensors
        .remove(&role)
        .ok_or_else(|| format!("{name} is missing, but other tensors of this module are there"))
}

/// The magnitudes of DoRA, one for each output. Some files have them for each input, which is another thing.
fn magnitudes(tensors: &mut Tensors) -> Result<Option<Vec<f32>>, String> {
    for (role, axis) in [(Role::Magnitude, 0), (Role::MagnitudeVector, 1)] {
        let Some(array) = tensors.remove(&role) else { continue };
        let axis = if array.shape.len() == 1 { 0 } else { axis };
        if array.shape.get(axis) != Some(&array.values.len()) {
            return Err(format!(
                "magnitudes of shape {:?}; they are read where there is one for each output",
                array.shape
            ));
        }
        return Ok(Some(array.values));
    }
    Ok(None)
}

/// [rows, columns] as a matrix of the first axis by all others.
fn matrix(array: &Array) -> Result<(usize, usize), String> {
    match array.shape[..] {
        [rows, ..] if rows > 0 && !array.values.is_empty() => Ok((rows, array.values.len() / rows)),
        _ => Err(format!("a tensor of shape {:?} is no matrix", array.shape)),
    }
}

/// a · b, with the trailing axes of b.
fn product(a: &Array, b: &Array) -> Result<Array, String> {
    let ((rows, inner), (own, columns)) = (matrix(a)?, matrix(b)?);
    if inner != own {
        return Err(format!("factors {:?} and {:?} do not fit each other", a.shape, b.shape));
    }
    let mut values = vec![0.0_f64; rows * columns];
    for (out, row) in values.chunks_exact_mut(columns).zip(a.values.chunks_exact(inner)) {
        for (weight, line) in row.iter().zip(b.values.chunks_exact(columns)) {
            out.iter_mut().zip(line).for_each(|(out, v)| *out += f64::from(*weight) * f64::from(*v));
        }
    }
    let shape = [&[rows], &b.shape[1..]].concat();
    Ok(Array { shape, values: values.into_iter().map(|v| v as f32).collect() })
}

/// Tucker's core [r, s, k, k] with a matrix [s, in] (or [s, in, 1, 1]) behind it: [r, in, k, k].
fn through(core: &Array, b: &Array) -> Result<Array, String> {
    let (&[r, s, h, w], (own, inputs)) = (&core.shape[..], matrix(b)?) else {
        return Err(format!("a core of shape {:?} must have four axes", core.shape));
    };
    if s != own {
        return Err(format!("a core {:?} does not fit {:?}", core.shape, b.shape));
    }
    let places = h * w;
    let mut values = vec![0.0_f32; r * inputs * places];
    for i in 0..r {
        for j in 0..inputs {
            for place in 0..places {
                let term = |k: usize| {
                    f64::from(core.values[(i * s + k) * places + place]) * f64::from(b.values[k * inputs + j])
                };
                values[(i * inputs + j) * places + place] = (0..s).map(term).sum::<f64>() as f32;
            }
        }
    }
    Ok(Array { shape: vec![r, inputs, h, w], values })
}

/// The transpose of a matrix.
fn transposed(a: &Array) -> Result<Array, String> {
    let (rows, columns) = matrix(a)?;
    let values = (0..columns).flat_map(|j| (0..rows).map(move |i| a.values[i * columns + j])).collect();
    Ok(Array { shape: vec![columns, rows], values })
}

/// (w1a w1b) ∘ (w2a w2b), or with cores: w1a is [r, out] then.
fn loha(tensors: &mut Tensors, scale: impl Fn(usize) -> f32) -> Result<LoraModule, String> {
    let mut factor = |a, b, core, name: &str| {
        let (a, b) = (take(tensors, a, &format!("{name}_a"))?, take(tensors, b, &format!("{name}_b"))?);
        let rank = matrix(&b)?.0;
        let product = match tensors.remove(&core) {
            Some(core) => product(&transposed(&a)?, &through(&core, &b)?)?,
            None => product(&a, &b)?,
        };
        Ok::<_, String>((product, rank))
    };
    let (first, rank) = factor(Role::HadaW1A, Role::HadaW1B, Role::HadaT1, "hada_w1")?;
    let (second, _) = factor(Role::HadaW2A, Role::HadaW2B, Role::HadaT2, "hada_w2")?;
    if first.shape != second.shape {
        return Err(format!(
            "the factors of its Hadamard product are {:?} and {:?}",
            first.shape, second.shape
        ));
    }
    let values = first.values.iter().zip(&second.values).map(|(a, b)| a * b).collect();
    dense(Array { shape: first.shape, values }, scale(rank))
}

/// w1 ⊗ w2, each whole or of two factors; the second may have a core.
fn lokr(tensors: &mut Tensors, scale: impl Fn(usize) -> f32) -> Result<LoraModule, String> {
    let mut rank = None;
    let mut factor = |whole, a, b, core: Option<Role>, name: &str| {
        if let Some(whole) = tensors.remove(&whole) {
            return Ok(whole);
        }
        let (a, b) = (take(tensors, a, &format!("{name}_a"))?, take(tensors, b, &format!("{name}_b"))?);
        rank = Some(matrix(&b)?.0);
        match core.and_then(|core| tensors.remove(&core)) {
            Some(core) => product(&transposed(&a)?, &through(&core, &b)?),
            None => product(&a, &b),
        }
    };
    let first = factor(Role::LokrW1, Role::LokrW1A, Role::LokrW1B, None, "lokr_w1")?;
    let second = factor(Role::LokrW2, Role::LokrW2A, Role::LokrW2B, Some(Role::LokrT2), "lokr_w2")?;
    let ((a, b), (c, _)) = (matrix(&first)?, matrix(&second)?);
    let (d, kernel) = match &second.shape[1..] {
        [d, kernel @ ..] => (*d, kernel),
        [] => return Err(format!("lokr_w2 of shape {:?} is no matrix", second.shape)),
    };
    let places: usize = kernel.iter().product();
    let mut values = Vec::with_capacity(a * b * c * d * places);
    for (i, k) in (0..a).flat_map(|i| (0..c).map(move |k| (i, k))) {
        for j in 0..b {
            let row = &second.values[k * d * places..(k + 1) * d * places];
            values.extend(row.iter().map(|v| first.values[i * b + j] * v));
        }
    }
    // two whole factors have no rank that alpha could be divided by
    let scale = rank.map_or(1.0, scale);
    dense(Array { shape: [&[a * c, b * d], kernel].concat(), values }, scale)
}

/// ΔW as a branch of full rank: `down` is ΔW and `up` is 1.
fn dense(delta: Array, scale: f32) -> Result<LoraModule, String> {
    let (outputs, _) = matrix(&delta)?;
    let mut up = vec![0.0; outputs * outputs];
    up.iter_mut().step_by(outputs + 1).for_each(|v| *v = 1.0);
    let mut up_shape = vec![outputs; 2];
    up_shape.resize(delta.shape.len(), 1);
    let alpha = scale * outputs as f32;
    Ok(LoraModule { down: delta.values, down_shape: delta.shape, up, up_shape, alpha, magnitude: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that differ.
    fn array(shape: &[usize], step: f32) -> Array {
        let count = shape.iter().product::<usize>();
        Array { shape: shape.to_vec(), values: (0..count).map(|i| (i as f32 * step).sin()).collect() }
    }

    fn composed(tensors: &[(Role, &Array)], alpha: f32) -> LoraModule {
        let alpha = Array { shape: vec![], values: vec![alpha] };
        let all = tensors.iter().map(|(role, array)| (*role, (*array).clone()));
        compose(all.chain([(Role::Alpha, alpha)]).collect(), |rank| rank as f32).unwrap()
    }

    #[track_caller]
    fn is(module: &LoraModule, shape: &[usize], wanted: impl Fn(&[usize]) -> f32) {
        let delta = module.delta();
        assert_eq!(delta.len(), shape.iter().product::<usize>());
        for (i, got) in delta.iter().enumerate() {
            let mut rest = i;
            let mut at: Vec<usize> = shape.iter().rev().map(|n| (rest % n, rest /= n).0).collect();
            at.reverse();
            let want = wanted(&at);
            assert!((got - want).abs() < 1e-5, "{at:?}: {got}, not {want}");
        }
    }

    fn at(array: &Array, at: &[usize]) -> f32 {
        array.values[at.iter().zip(&array.shape).fold(0, |sum, (i, n)| sum * n + i)]
    }

    /// Σ_k a[i, k] b[k, j…].
    fn sum(a: &Array, b: &Array, i: usize, rest: &[usize]) -> f32 {
        (0..b.shape[0]).map(|k| at(a, &[i, k]) * at(b, &[&[k], rest].concat())).sum()
    }

    /// Σ_k Σ_l core[k, l, y, x] a[k, i] b[l, j].
    fn tucker(core: &Array, a: impl Fn(usize) -> f32, b: &Array, j: usize, place: &[usize]) -> f32 {
        let (r, s) = (core.shape[0], core.shape[1]);
        let pairs = (0..r).flat_map(|k| (0..s).map(move |l| (k, l)));
        pairs.map(|(k, l)| at(core, &[k, l, place[0], place[1]]) * a(k) * at(b, &[l, j])).sum()
    }

    #[test]
    fn tuckers_form_is_a_branch() {
        let (down, mid, up) =
            (array(&[2, 5, 1, 1], 0.3), array(&[2, 2, 3, 3], 0.7), array(&[4, 2, 1, 1], 1.1));
        let module = composed(&[(Role::Down, &down), (Role::Mid, &mid), (Role::Up, &up)], 3.0);
        assert_eq!((module.rank(), &module.down_shape[..]), (2, &[2, 5, 3, 3][..]));
        let flat = Array { shape: vec![2, 5], ..down };
        is(&module, &[4, 5, 3, 3], |p| {
            1.5 * tucker(&mid, |k| at(&up, &[p[0], k, 0, 0]), &flat, p[1], &p[2..])
        });
    }

    #[test]
    fn hadamard_products() {
        let [a1, b1, a2, b2] = [(&[4, 2], 0.3), (&[2, 6], 0.7), (&[4, 2], 1.1), (&[2, 6], 1.9)]
            .map(|(shape, step)| array(shape, step));
        let roles = [Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B];
        let module = composed(&[(roles[0], &a1), (roles[1], &b1), (roles[2], &a2), (roles[3], &b2)], 1.0);
        is(&module, &[4, 6], |p| 0.5 * sum(&a1, &b1, p[0], &p[1..]) * sum(&a2, &b2, p[0], &p[1..]));
        // with cores the first factors lie on their side
        let (a1, a2) = (array(&[2, 4], 0.3), array(&[2, 4], 1.1));
        let (t1, t2) = (array(&[2, 2, 3, 3], 0.9), array(&[2, 2, 3, 3], 1.3));
        let cores = [(Role::HadaT1, &t1), (Role::HadaT2, &t2)];
        let pairs = [(roles[0], &a1), (roles[1], &b1), (roles[2], &a2), (roles[3], &b2), cores[0], cores[1]];
        is(&composed(&pairs, 2.0), &[4, 6, 3, 3], |p| {
            let factor = |core, a: &Array, b| tucker(core, |k| at(a, &[k, p[0]]), b, p[1], &p[2..]);
            factor(&t1, &a1, &b1) * factor(&t2, &a2, &b2)
        });
    }

    #[test]
    fn kronecker_products() {
        let (w1, w2) = (array(&[2, 3], 0.4), array(&[5, 2], 0.8));
        let kron = |p: &[usize], w2: &dyn Fn(usize, usize) -> f32| {
            at(&w1, &[p[0] / 5, p[1] / 2]) * w2(p[0] % 5, p[1] % 2)
        };
        // two whole factors have no rank, and alpha means nothing
        let module = composed(&[(Role::LokrW1, &w1), (Role::LokrW2, &w2)], 7.0);
        is(&module, &[10, 6], |p| kron(p, &|i, j| at(&w2, &[i, j])));
        let (a, b) = (array(&[5, 2], 0.5), array(&[2, 2], 0.6));
        let module = composed(&[(Role::LokrW1, &w1), (Role::LokrW2A, &a), (Role::LokrW2B, &b)], 1.0);
        is(&module, &[10, 6], |p| 0.5 * kron(p, &|i, j| sum(&a, &b, i, &[j])));
        let (core, a) = (array(&[2, 2, 3, 3], 0.2), array(&[2, 5], 0.5));
        let factors = [(Role::LokrW1, &w1), (Role::LokrW2A, &a), (Role::LokrW2B, &b), (Role::LokrT2, &core)];
        is(&composed(&factors, 2.0), &[10, 6, 3, 3], |p| {
            kron(p, &|i, j| tucker(&core, |k| at(&a, &[k, i]), &b, j, &p[2..]))
        });
    }

    #[test]
    fn full_differences() {
        let diff = array(&[4, 3], 0.4);
        is(&composed(&[(Role::Diff, &diff)], 9.0), &[4, 3], |p| at(&diff, p));
    }
}
