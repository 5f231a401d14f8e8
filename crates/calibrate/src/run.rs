//! The stages in order.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use q35_architecture::{Role, TextConfig, tensor_table};
use q35_inference::Weights;
use q35_quant::FloatType;
use q35_quant::affine::AffineSpec;
use q35_reference::{Rotation, Tap, no_taps};

use crate::learn::{Learner, Rates};
use crate::moments::SecondMoments;
use crate::own_text::{BEGINNING, continue_text};
use crate::parallel::in_order;
use crate::passes::{final_states, logit_rows};
use crate::random::Random;
use crate::rounding::{Feedback, round_with_feedback};
use crate::saved::Saved;
use crate::sensitivity::{Guide, decide, measure, smallest_bytes};
use crate::softmax::divergence;
use crate::tower::{Replacement, Tower, embed};
use crate::{CalibrateError, Grid};

/// What to do, and how much of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// Bytes of all matrices together: codes, scales and biases.
    pub budget_bytes: u64,
    /// Bits and group size of every matrix; nothing lets sensitivity decide within the budget.
    pub uniform: Option<(u32, usize)>,
    /// Tokens of a window.
    pub window: usize,
    /// Windows used, drawn from all of the text.
    pub windows: usize,
    /// Windows that the float model writes itself, going on from the text.
    pub own_windows: usize,
    /// Of those, how many are written together.
    pub own_batch: usize,
    /// Windows computed together.
    pub batch: usize,
    /// Windows over which the sensitivity of single weights is measured.
    pub sensitivity_windows: usize,
    /// Whether tokens count as much as errors at them matter, or all alike.
    pub guided: bool,
    /// Whether rounding errors are fed into later columns.
    pub feedback: bool,
    /// How often codes, scales and biases are gone over after that.
    pub passes: usize,
    /// Part of the mean second moment that is added to all of them.
    pub damping: f64,
    /// The last stage, or nothing.
    pub learning: Option<Learning>,
    /// Of every random choice.
    pub seed: u64,
}

/// How to learn.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Learning {
    /// Steps, of one batch each.
    pub steps: usize,
    /// Step sizes.
    pub rates: Rates,
    /// Whether embedding and head learn too; their gradients take 16 bytes a weight.
    pub tables: bool,
}

/// Bits for one matrix, and why.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Decision {
    /// Bits of a code.
    pub bits: u32,
    /// Weights of a group.
    pub group_size: usize,
    /// KL divergence expected of rounding this matrix alone; 0 if sensitivity was not measured.
    pub expected_kl: f64,
}

/// Part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text written by the float model.
    OwnText,
    /// The float model's predictions, for learning.
    Float,
    /// Where errors matter: at which tokens, and in which matrices.
    Sensitivity,
    /// Rounding, layer after layer.
    Rounding,
    /// Learning.
    Learning,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Parts done.
    pub done: usize,
    /// Parts in all.
    pub total: usize,
    /// While learning: the mean divergence on the step's windows.
    pub divergence: Option<f64>,
}

/// Hears of progress and says whether to go on.
pub type Listener<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// The result.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// Every quantized matrix, and the float tensors that were changed.
    pub tensors: BTreeMap<String, Replacement>,
    /// Bits of every matrix.
    pub decisions: BTreeMap<String, Decision>,
}

/// What is calibrated, and where.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The float model.
    pub weights: &'a dyn Weights,
    /// The type that its tensors are stored in, and so scales and biases.
    pub float: FloatType,
    /// Calibration text as tokens; what does not fill a window is left out.
    pub ids: &'a [u32],
    /// Where to compute.
    pub device: &'a Device,
    /// Where finished work is kept, to go on after a kill.
    pub saved: Option<&'a Saved>,
}

/// Calibrates.
///
/// # Errors
/// Too little text, a budget that is too small, cancellation, or a failure to read weights or to compute.
pub fn calibrate(
    job: Job<'_>,
    settings: &Settings,
    listener: &mut Listener<'_>,
) -> Result<Calibrated, CalibrateError> {
    let Job { weights, float, ids, device, saved } = job;
    let windows: Vec<&[u32]> = ids.chunks_exact(settings.window).collect();
    if windows.len() < settings.batch {
        return Err(CalibrateError::TooShort {
            expected: settings.batch * settings.window,
            found: ids.len(),
        });
    }
    let order = Random::new(settings.seed).permutation(windows.len());
    let given = order.iter().take(settings.windows.max(settings.batch)).map(|at| windows[*at]);
    let teacher = Tower::new(weights, float, device.clone());
    if settings.uniform.is_none() {
        let (budget_bytes, smallest_bytes) = (settings.budget_bytes, smallest_bytes(&teacher)?);
        if budget_bytes < smallest_bytes {
            return Err(CalibrateError::Budget { budget_bytes, smallest_bytes });
        }
    }
    let mut run = Run { settings, listener, batches: &[], saved };
    let own = run.own_text(&teacher, ids)?;
    let all: Vec<&[u32]> = given.chain(own.iter().map(Vec::as_slice)).collect();
    let mixed: Vec<&[u32]> =
        Random::new(settings.seed ^ MIXING).permutation(all.len()).into_iter().map(|at| all[at]).collect();
    let batches: Vec<Vec<&[u32]>> = mixed.chunks_exact(settings.batch).map(<[_]>::to_vec).collect();
    let mut run = Run { settings, listener: run.listener, batches: &batches, saved };

    let (decisions, guide) = run.measure(&teacher)?;
    let mut tower = Tower::new(weights, float, device.clone());
    run.round(&mut tower, &guide, &decisions)?;
    if let Some(learning) = settings.learning {
        let targets = run.float_states(&teacher)?;
        run.learn(&teacher, &mut tower, &targets, learning)?;
    }
    Ok(Calibrated { tensors: tower.replaced, decisions })
}

/// Keeps the random choices of different purposes apart.
const MIXING: u64 = 0x6d69_7869_6e67;
const WRITING: u64 = 0x0077_7269_7469_6e67;

struct Run<'a, 'b, 'c> {
    settings: &'a Settings,
    listener: &'a mut Listener<'b>,
    batches: &'a [Vec<&'c [u32]>],
    saved: Option<&'a Saved>,
}

impl Run<'_, '_, '_> {
    fn tell(
        &mut self,
        stage: Stage,
        done: usize,
        total: usize,
        divergence: Option<f64>,
    ) -> Result<(), CalibrateError> {
        match (self.listener)(Progress { stage, done, total, divergence }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CalibrateError::Cancelled),
        }
    }

    fn float_states(&mut self, teacher: &Tower<'_>) -> Result<Vec<Tensor>, CalibrateError> {
        let layers = teacher.config.num_hidden_layers;
        final_states(teacher, self.batches, &mut |done| self.tell(Stage::Float, done + 1, layers, None))
    }

    /// The windows that the float model writes, from beginnings at random places of the text.
    fn own_text(&mut self, teacher: &Tower<'_>, ids: &[u32]) -> Result<Vec<Vec<u32>>, CalibrateError> {
        let Settings { own_windows, own_batch, window, seed, .. } = *self.settings;
        if let Some(windows) = self.saved.and_then(Saved::own_text) {
            return Ok(windows);
        }
        let mut random = Random::new(seed ^ WRITING);
        let beginnings: Vec<&[u32]> = (0..own_windows)
            .map(|_| {
                let start = (random.uniform() * (ids.len() - BEGINNING) as f32) as usize;
                &ids[start..start + BEGINNING]
            })
            .collect();
        let total = own_windows.div_ceil(own_batch) * window;
        let mut windows = Vec::with_capacity(own_windows);
        for (index, beginnings) in beginnings.chunks(own_batch).enumerate() {
            let before = index * window;
            windows.extend(continue_text(
                teacher,
                beginnings,
                window,
                seed ^ WRITING ^ (index as u64 + 1),
                &mut |done| self.tell(Stage::OwnText, before + done + 1, total, None),
            )?);
        }
        if let Some(saved) = self.saved {
            saved.put_own_text(&windows)?;
        }
        Ok(windows)
    }

    /// Batches computed beside each other: as many as there are threads, but of a large model, whose batches take more
    /// than a gigabyte each, one. A GPU spreads every operation over all of itself and takes them one after the other.
    fn side_by_side(&self, tower: &Tower<'_>) -> usize {
        let threads = rayon::current_num_threads();
        if tower.device.is_cpu() && weights_of(&tower.config) < SMALL { threads } else { 1 }
    }

    /// Bits of every matrix, and at which tokens errors matter.
    fn measure(
        &mut self,
        teacher: &Tower<'_>,
    ) -> Result<(BTreeMap<String, Decision>, Guide), CalibrateError> {
        if let Some(done) = self.saved.and_then(Saved::measured) {
            return Ok(done);
        }
        let Settings { uniform, sensitivity_windows, batch, seed, budget_bytes, .. } = *self.settings;
        let by_weights = if uniform.is_some() { 0 } else { sensitivity_windows.div_ceil(batch).max(1) };
        let (batches, total) = (self.batches, self.batches.len());
        let side_by_side = self.side_by_side(teacher);
        let measured = measure(teacher, batches, by_weights, side_by_side, seed, &mut |done| {
            self.tell(Stage::Sensitivity, done + 1, total, None)
        })?;
        let decisions = match uniform {
            None => decide(teacher, &measured.marginals, budget_bytes)?,
            Some((bits, group_size)) => {
                let decision = Decision { bits, group_size, expected_kl: 0.0 };
                let matrices = teacher.table.iter().filter(|(_, spec)| spec.role.is_quantized());
                matrices.map(|(name, _)| (name.clone(), decision)).collect()
            }
        };
        if let Some(saved) = self.saved {
            saved.put_measured(&decisions, &measured.guide)?;
        }
        Ok((decisions, measured.guide))
    }

    fn quantize(
        &self,
        tower: &Tower<'_>,
        name: &str,
        decision: Decision,
        moments: &[f32],
    ) -> Result<Grid, CalibrateError> {
        let spec = AffineSpec::new(decision.bits, decision.group_size)
            .map_err(|_| CalibrateError::Shape { name: name.to_owned(), cols: tower.table[name].shape[1] })?;
        let cols = tower.table[name].shape[1];
        let values = tower.float_values(name)?;
        if self.settings.feedback {
            let feedback = Feedback::new(moments, cols, self.settings.damping)?;
            Ok(round_with_feedback(spec, tower.float, &values, &feedback, self.settings.passes)?)
        } else {
            let importance: Vec<f32> = (0..cols).map(|k| moments[k * cols + k]).collect();
            Ok(Grid::round(spec, tower.float, &values, &importance))
        }
    }

    /// Quantizes the matrices `names`, whose inputs' second moments `moments` gives, unless that is saved work.
    fn quantize_part(
        &self,
        tower: &mut Tower<'_>,
        part: &str,
        names: Vec<String>,
        decisions: &BTreeMap<String, Decision>,
        moments: &mut dyn FnMut(&str) -> Result<Vec<f32>, CalibrateError>,
    ) -> Result<(), CalibrateError> {
        if let Some(grids) = self.saved.and_then(|saved| saved.grids(part)) {
            tower.replaced.extend(grids.into_iter().map(|(name, grid)| (name, Replacement::Grid(grid))));
            return Ok(());
        }
        let mut grids = Vec::with_capacity(names.len());
        for name in names {
            let grid = self.quantize(tower, &name, decisions[&name], &moments(&name)?)?;
            grids.push((name, grid));
        }
        if let Some(saved) = self.saved {
            let parts: Vec<(&str, &Grid)> = grids.iter().map(|(name, grid)| (name.as_str(), grid)).collect();
            saved.put_grids(part, &parts)?;
        }
        tower.replaced.extend(grids.into_iter().map(|(name, grid)| (name, Replacement::Grid(grid))));
        Ok(())
    }

    fn round(
        &mut self,
        tower: &mut Tower<'_>,
        guide: &Guide,
        decisions: &BTreeMap<String, Decision>,
    ) -> Result<(), CalibrateError> {
        let layers = tower.config.num_hidden_layers;
        let side_by_side = self.side_by_side(tower);
        let tables: Vec<String> = tower
            .table
            .values()
            .filter(|s| matches!(s.role, Role::Embedding | Role::Head))
            .map(|s| s.name.clone())
            .collect();
        let (tied, head_name) = (tower.config.tie_word_embeddings, tower.head_name());
        self.quantize_part(tower, "tables", tables, decisions, &mut |name| {
            Ok(match (name == head_name, tied) {
                // One table, two uses: their errors add up.
                (true, true) => guide.head.iter().zip(&guide.lookup).map(|(h, l)| h + l).collect(),
                (true, false) => guide.head.clone(),
                (false, _) => guide.lookup.clone(),
            })
        })?;
        self.tell(Stage::Rounding, 1, layers + 1, None)?;
        let table = tower.tensor("embed_tokens.weight")?;
        let mut states =
            self.batches.iter().map(|windows| embed(&table, windows)).collect::<Result<Vec<_>, _>>()?;
        drop(table);
        for index in 0..layers {
            let rotation = Rotation::new(&tower.config, 0, self.settings.window, &tower.device)?;
            let names: Vec<String> = tower
                .table
                .values()
                .filter(|spec| spec.layer == Some(index) && spec.role == Role::Linear)
                .map(|spec| spec.name.clone())
                .collect();
            let float_layer = tower.layer(index)?;
            let mut by_tap: BTreeMap<Tap, SecondMoments> = BTreeMap::new();
            let guided = self.settings.guided.then(|| guide.tokens[index].as_slice());
            let config = tower.config.clone();
            self.quantize_part(tower, &format!("layer-{index}"), names, decisions, &mut |name| {
                if by_tap.is_empty() {
                    let starts: Vec<usize> = states
                        .iter()
                        .scan(0, |next, x| {
                            let start = *next;
                            *next += x.elem_count() / config.hidden_size;
                            Some(start)
                        })
                        .collect();
                    in_order(
                        &states,
                        side_by_side,
                        |index, x| {
                            let mut part: BTreeMap<Tap, SecondMoments> = BTreeMap::new();
                            float_layer.forward(x, &config, &rotation, &mut |tap, x| {
                                let (moments, rows) = (part.entry(tap).or_default(), x.flatten_to(1)?);
                                match guided {
                                    Some(weights) => {
                                        let weights = &weights[starts[index]..][..rows.dim(0)?];
                                        moments.add_weighted(&rows, weights)
                                    }
                                    None => moments.add(&rows),
                                }
                            })?;
                            Ok(part)
                        },
                        |_, part| {
                            for (tap, moments) in part {
                                by_tap.entry(tap).or_default().merge(moments)?;
                            }
                            Ok(())
                        },
                    )?;
                }
                by_tap[&tap_of(name)].mean()
            })?;
            drop(float_layer);
            let layer = tower.layer(index)?;
            let mut after = Vec::with_capacity(states.len());
            in_order(
                &states,
                side_by_side,
                |_, x| Ok(layer.forward(x, &tower.config, &rotation, &mut no_taps)?),
                |_, x| {
                    after.push(x);
                    Ok(())
                },
            )?;
            states = after;
            self.tell(Stage::Rounding, index + 2, layers + 1, None)?;
        }
        Ok(())
    }

    fn learn(
        &mut self,
        teacher: &Tower<'_>,
        tower: &mut Tower<'_>,
        targets: &[Tensor],
        learning: Learning,
    ) -> Result<(), CalibrateError> {
        let head = teacher.tensor(teacher.head_name())?;
        let mut learner = Learner::new(tower, learning.rates, learning.tables)?;
        let mut order = Vec::new();
        let mut random = Random::new(self.settings.seed.wrapping_add(1));
        for step in 0..learning.steps {
            if order.is_empty() {
                order = random.permutation(self.batches.len());
            }
            let at = order.pop().expect("there is a batch");
            let pace = pace(step, learning.steps);
            let divergence = learner.step(tower, &self.batches[at], &targets[at], &head, pace)?;
            self.tell(Stage::Learning, step + 1, learning.steps, Some(divergence))?;
        }
        Ok(())
    }
}

/// Up over the first twentieth of the steps, then down along a cosine to nothing.
fn pace(step: usize, steps: usize) -> f32 {
    let at = (step as f32 + 0.5) / steps as f32;
    let warm = (at / 0.05).min(1.0);
    warm * 0.5 * (1.0 + (std::f32::consts::PI * at).cos())
}

/// Where a projection's input is seen.
fn tap_of(name: &str) -> Tap {
    if name.ends_with("down_proj.weight") {
        Tap::MlpOutput
    } else if name.contains(".mlp.") {
        Tap::MlpInput
    } else if name.ends_with("out_proj.weight") || name.ends_with("o_proj.weight") {
        Tap::MixerOutput
    } else {
        Tap::MixerInput
    }
}

impl Settings {
    /// Everything but learning, for a model of these sizes within `budget_bytes`, on `text_tokens` of calibration text.
    ///
    /// Work is measured in arithmetic, not in time, so that it ends alike everywhere: a model of 0.8 billion weights
    /// sees eight thousand tokens, half of them its own, a small one fifty thousand.
    pub fn rounding(config: &TextConfig, text_tokens: usize, budget_bytes: u64) -> Self {
        let (window, batch) = (256, 2);
        let affordable = (WORK / (WORK_PER_WEIGHT * weights_of(config) * window as f64)) as usize;
        let windows = (affordable / 2).min(MOST_WINDOWS).min(text_tokens / window).max(batch);
        Self {
            budget_bytes,
            uniform: None,
            window,
            windows,
            own_windows: windows,
            own_batch: 32,
            batch,
            sensitivity_windows: (windows / 2).max(16),
            guided: true,
            feedback: true,
            passes: 3,
            damping: 0.01,
            learning: None,
            seed: 0,
        }
    }

    /// With learning too: a large model's scales, biases and norms from some ten thousand tokens; a small one's tables
    /// and codes as well, from the whole text several times.
    pub fn with_learning(mut self, config: &TextConfig) -> Self {
        let weights = weights_of(config);
        let learned = (LEARNING_WORK / (LEARNING_PER_WEIGHT * weights)) as usize;
        let learned = learned.min(LEARNING_ROUNDS * self.windows * self.window);
        let small = weights < SMALL;
        let rates = Rates { scale: 3e-4, bias: 3e-3, code: if small { CODE_RATE } else { 0.0 }, float: 5e-5 };
        let steps = (learned / (self.window * self.batch)).max(1);
        self.learning = Some(Learning { steps, rates, tables: small });
        self
    }
}

fn weights_of(config: &TextConfig) -> f64 {
    tensor_table(config).iter().map(|spec| spec.shape.iter().product::<usize>() as f64).sum()
}

/// Multiplications and additions that calibration may take, and those of a token for every weight: writing it or not,
/// two passes forward and one back for measuring, one pass of the float and one of the rounded layers, and the second
/// moments.
const WORK: f64 = 4.5e13;
const WORK_PER_WEIGHT: f64 = 7.0;
/// Windows that a small model is given at most.
const MOST_WINDOWS: usize = 96;
/// The same for learning: two passes forward and one back, with everything that a pass back computes.
const LEARNING_WORK: f64 = 8e13;
const LEARNING_PER_WEIGHT: f64 = 10.0;
/// How often the text is learned from at most.
const LEARNING_ROUNDS: usize = 4;
/// Weights up to which memory is no concern: several batches side by side, and 12 bytes a weight to learn codes.
const SMALL: f64 = 1.5e8;
/// Steps of its group that a weight may move at first in one step of learning.
const CODE_RATE: f32 = 3e-3;

/// The mean KL(float || replaced) over all tokens of the job's text in whole windows.
///
/// # Errors
/// A failure to read weights or to compute.
pub fn mean_divergence(
    job: Job<'_>,
    tensors: &BTreeMap<String, Replacement>,
    window: usize,
) -> Result<f64, CalibrateError> {
    let batches: Vec<Vec<&[u32]>> = job.ids.chunks_exact(window).map(|w| vec![w]).collect();
    if batches.is_empty() {
        return Err(CalibrateError::TooShort { expected: window, found: job.ids.len() });
    }
    let teacher = Tower::new(job.weights, job.float, job.device.clone());
    let mut tower = Tower::new(job.weights, job.float, job.device.clone());
    tower.replaced.clone_from(tensors);
    let expected = final_states(&teacher, &batches, &mut |_| Ok(()))?;
    let found = final_states(&tower, &batches, &mut |_| Ok(()))?;
    let (float_head, head) = (teacher.tensor(teacher.head_name())?, tower.tensor(tower.head_name())?);
    let vocab = teacher.config.vocab_size;
    let (mut total, mut tokens) = (0.0, 0);
    for (expected, found) in expected.iter().zip(&found) {
        let rows = expected.dim(0)?;
        for start in (0..rows).step_by(logit_rows(vocab)) {
            let count = logit_rows(vocab).min(rows - start);
            let logits = |states: &Tensor, head: &Tensor| {
                states
                    .narrow(0, start, count)?
                    .contiguous()?
                    .matmul(&head.t()?)?
                    .flatten_all()?
                    .to_vec1::<f32>()
            };
            total += divergence(&mut logits(expected, &float_head)?, &mut logits(found, &head)?, vocab, 0.0);
            tokens += count;
        }
    }
    Ok(total / tokens as f64)
}
