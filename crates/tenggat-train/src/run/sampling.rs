//! Samples of a run: before the first step, every few steps, and of the finished LoRA.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::RgbImage;
use tenggat_models::lora::Lora;
use tenggat_models::qwen_image::{PromptEncoder, TextBatch};
use tenggat_plan::{Clock, PartTime};

use super::event::Event;
use super::folder::RunFolder;
use super::{Error, Result};
use crate::job::{Job, PictureFormat, Prompt};
use crate::outcome::generator::{Generator, Request};
use crate::outcome::report::sheet::{self, Row, Sheet};

/// Folder of the pictures inside the run's.
const FOLDER: &str = "samples";
/// Folder of the sheets, one a round.
const SHEETS: &str = "sheets";
/// Negative prompt where the job names none: a blank, as Qwen-Image's authors use it, which has next to no
/// effect.
const NO_NEGATIVE: &str = " ";

/// Generates rounds of samples.
pub(super) struct Sampling<'a> {
    generator: Generator<'a>,
    clock: &'a dyn Clock,
    seed: u64,
    /// Names of the LoRA and of the model, for the files.
    name: &'a str,
    model: &'a str,
    format: PictureFormat,
    prompts: Vec<(&'a Prompt, TextBatch, Option<TextBatch>)>,
    /// Steps of the last whole round.
    last_round: Option<u64>,
    /// A round that an earlier part of the run had begun, and its pictures.
    begun: Option<(u64, BTreeMap<usize, PathBuf>)>,
    /// Pictures of the round before the first step.
    untrained: Vec<RgbImage>,
    sheet_time: PartTime,
}

/// Whether the next part of a picture may begin: told the seconds that the longest part took.
pub(super) type MayGoOn<'a> = &'a mut dyn FnMut(PartTime) -> bool;

impl<'a> Sampling<'a> {
    /// Encodes the job's prompts; `None` if it has none.
    ///
    /// # Errors
    /// The text encoder failed.
    pub fn new(
        job: &'a Job,
        text: &PromptEncoder,
        generator: Generator<'a>,
        clock: &'a dyn Clock,
    ) -> Result<Option<Self>> {
        if !job.sample.enabled {
            return Ok(None);
        }
        let encoded = |prompt: &'a Prompt| -> Result<_> {
            let negative = prompt.negative.as_deref().unwrap_or(NO_NEGATIVE);
            let guided = prompt.guidance_scale > 1.0;
            let negative = guided.then(|| text.encode(&[negative])).transpose()?;
            Ok((prompt, text.encode(&[&prompt.text])?, negative))
        };
        let prompts = job.sample.prompts.iter().map(encoded).collect::<Result<_>>()?;
        let (seed, format) = (job.seed, job.sample.format);
        let (name, model) = (job.name.as_str(), job.model.name_or_path.as_str());
        Ok(Some(Sampling {
            name,
            model,
            generator,
            clock,
            seed,
            format,
            prompts,
            last_round: None,
            begun: None,
            untrained: Vec::new(),
            sheet_time: PartTime::default(),
        }))
    }

    /// Whether the last complete round shows the LoRA after this many steps.
    pub fn has_drawn(&self, steps: u64) -> bool {
        self.last_round == Some(steps)
    }

    /// Counts a round as done if an earlier part of the run has left all its images in the folder. Images of
    /// an incomplete round are not generated again.
    pub fn take_over(&mut self, steps: u64, folder: &RunFolder) {
        let found = self.found(steps, folder);
        if found.len() == self.prompts.len() {
            self.last_round = Some(steps);
        } else {
            self.begun = Some((steps, found));
        }
    }

    /// Images of the round after this many steps, by their numbers.
    fn found(&self, steps: u64, folder: &RunFolder) -> BTreeMap<usize, PathBuf> {
        let entries = std::fs::read_dir(folder.file(FOLDER)).into_iter().flatten().flatten();
        let number = |path: &Path| -> Option<usize> {
            let (_, own) = path.file_stem()?.to_str()?.split_once("__")?;
            own.strip_prefix(&format!("{steps:09}_"))?.parse().ok().filter(|&n| n < self.prompts.len())
        };
        let has_extension = |path: &Path| path.extension().is_some_and(|own| own == self.extension());
        let pictures = entries.map(|entry| entry.path()).filter(|path| has_extension(path));
        pictures.filter_map(|path| Some((number(&path)?, path))).collect()
    }

    /// One picture of each prompt, `samples/<milliseconds>__<9-digit step>_<number>.<format>`, as far as
    /// `may_go_on` allows: it is called after every step of the sampler. Several prompts also give
    /// `sheets/<9-digit step>.<format>`, all of the round and of the one before the first step. Returns
    /// whether the round is whole.
    ///
    /// # Errors
    /// An image cannot be generated or written.
    pub fn round(
        &mut self,
        lora: &Lora,
        steps: u64,
        folder: &RunFolder,
        may_go_on: MayGoOn<'_>,
        show: &mut dyn FnMut(Event),
    ) -> Result<bool> {
        let pictures = folder.file(FOLDER);
        std::fs::create_dir_all(&pictures).map_err(|e| Error::file("make the folder", &pictures, e))?;
        let begun = self.begun.take().filter(|(at, _)| *at == steps).map(|(_, pictures)| pictures);
        let mut drawn = Vec::new();
        for (number, (prompt, text, negative)) in self.prompts.iter().enumerate() {
            let there = begun.as_ref().and_then(|pictures| image::open(pictures.get(&number)?).ok());
            if let Some(picture) = there {
                drawn.push(picture.to_rgb8());
                continue;
            }
            let adapter = with_strength(lora, prompt.strength)?;
            let request = Request {
                prompt: text,
                guidance: negative.as_ref().map(|negative| (negative, prompt.guidance_scale)),
                width: prompt.width,
                height: prompt.height,
                seed: prompt.seed.unwrap_or(self.seed.wrapping_add(steps).wrapping_add(number as u64)),
                steps: prompt.steps,
            };
            let (mut before_s, mut time) = (self.clock.now_s(), PartTime::default());
            let (mut done, total) =
                (parts_before(&self.prompts, number), parts_before(&self.prompts, usize::MAX));
            let mut tick = || {
                done += 1;
                show(Event::Progress { done: done.min(total), total });
                let now_s = self.clock.now_s();
                time.observe(now_s - before_s);
                before_s = now_s;
                if may_go_on(time) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let adapter = adapter.as_ref().map_or((prompt.strength != 0.0).then_some(lora), Some);
            let Some(picture) = self.generator.generate(adapter, request, &mut tick)? else {
                return Ok(false);
            };
            let path = self.path(&pictures, steps, number);
            let negative = negative.as_ref().and(prompt.negative.as_deref());
            let mut parameters = request.parameters(&prompt.text, negative, self.model);
            parameters += &format!(", LoRA: {} after {steps} steps, strength {}", self.name, prompt.strength);
            crate::outcome::report::save_picture_with(&picture, 0, &path, &parameters)?;
            drawn.push(crate::outcome::report::to_rgb(&picture, 0)?);
        }
        self.last_round = Some(steps);
        if drawn.len() > 1 && may_go_on(self.sheet_time) {
            let began_s = self.clock.now_s();
            let path = self.sheet(&drawn, steps, folder)?;
            show(Event::Wrote { what: "sample sheet", path });
            self.sheet_time.observe(self.clock.now_s() - began_s);
        }
        if steps == 0 {
            self.untrained = drawn;
        }
        show(Event::Wrote { what: "samples", path: pictures });
        Ok(true)
    }

    /// A row for each prompt: before the first step, if there is such an image, and now.
    fn sheet(&self, drawn: &[RgbImage], steps: u64, folder: &RunFolder) -> Result<PathBuf> {
        let row = |(i, picture): (usize, &RgbImage)| Row {
            label: self.prompts[i].0.text.clone(),
            note: String::new(),
            pictures: self.untrained.get(i).into_iter().chain([picture]).cloned().collect(),
        };
        let rows: Vec<Row> = drawn.iter().enumerate().map(row).collect();
        let now = format!("{steps} steps");
        let columns = if self.untrained.is_empty() { vec![now.as_str()] } else { vec!["untrained", &now] };
        let subtitle = format!("samples of {}", self.model);
        let sheets = folder.file(SHEETS);
        std::fs::create_dir_all(&sheets).map_err(|e| Error::file("make the folder", &sheets, e))?;
        let path = sheets.join(format!("{steps:09}.{}", self.extension()));
        let sheet = Sheet { title: self.name, subtitle: &subtitle, columns: &columns, rows: &rows };
        sheet::save(&sheet, &path)?;
        Ok(path)
    }

    fn path(&self, folder: &Path, steps: u64, number: usize) -> PathBuf {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        folder.join(format!("{}__{steps:09}_{number}.{}", since.as_millis(), self.extension()))
    }

    fn extension(&self) -> &'static str {
        match self.format {
            PictureFormat::Jpeg => "jpg",
            PictureFormat::Png => "png",
            PictureFormat::WebP => "webp",
        }
    }
}

/// Steps of the sampler for the prompts before this one.
fn parts_before(prompts: &[(&Prompt, TextBatch, Option<TextBatch>)], number: usize) -> u64 {
    prompts.iter().take(number).map(|(prompt, ..)| prompt.steps as u64).sum()
}

/// The adapter at another strength; `None` where it can be used as it is, or not at all.
fn with_strength(lora: &Lora, strength: f64) -> Result<Option<Lora>> {
    if strength == lora.scale || strength == 0.0 {
        return Ok(None);
    }
    let parameters = lora.parameters.duplicate()?;
    Ok(Some(Lora { scale: strength, ..Lora::new(lora.layout.clone(), parameters) }))
}
