//! What stands around a message in a log line.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;

/// A log line's message, without what loggers put before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'l> {
    pub(super) process: Option<Cow<'l, str>>,
    pub(super) text: Cow<'l, str>,
}

/// vLLM at `VLLM_LOGGING_FORMATTER=json`.
#[derive(Deserialize)]
struct Json {
    message: String,
    #[serde(rename = "processName")]
    name: Option<String>,
    process: Option<i64>,
}

impl<'l> Message<'l> {
    pub(super) fn of(line: &'l str) -> Self {
        if line.starts_with('{')
            && let Ok(json) = serde_json::from_str::<Json>(line)
        {
            let process = json.name.zip(json.process).map(|(name, pid)| format!("{name} pid={pid}").into());
            return Self { process, text: json.message.into() };
        }
        let (process, rest) = without_process(line);
        let text = without_logger(rest);
        Self { process: process.map(Cow::Borrowed), text: text.into() }
    }
}

/// `(EngineCore_DP0 pid=165) text`
fn without_process(line: &str) -> (Option<&str>, &str) {
    let split = || {
        let (process, rest) = line.strip_prefix('(')?.split_once(')')?;
        let (_, pid) = process.split_once(" pid=")?;
        is_number(pid).then_some((Some(process), rest.trim_start()))
    };
    split().unwrap_or((None, line))
}

/// The first of the loggers' forms that fits; they do not nest, but for uvicorn's in SGLang's.
fn without_logger(line: &str) -> &str {
    of_vllm(line)
        .or_else(|| of_flashinfer(line))
        .or_else(|| of_torch(line))
        .or_else(|| of_sglang(line))
        .or_else(|| of_uvicorn(line))
        .unwrap_or(line)
}

/// `INFO 11-21 05:43:39 [decorators.py:319] text`, and before 0.10 `INFO 11-21 05:43:39 decorators.py:319] text`
fn of_vllm(line: &str) -> Option<&str> {
    let (level, rest) = line.split_once(' ')?;
    if !["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"].contains(&level) {
        return None;
    }
    let (date, rest) = rest.split_once(' ')?;
    let (time, rest) = rest.split_once(' ')?;
    let (file, text) = rest.split_once(']')?;
    let (_, line) = file.trim_start_matches('[').rsplit_once(':')?;
    (is_of("-", date) && is_of(":", time) && is_number(line)).then(|| text.trim_start_matches(' '))
}

/// `2026-07-05 08:55:54,532 - INFO - autotuner.py:1837 - flashinfer.jit: text`
fn of_flashinfer(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(" - ")?;
    let (_level, rest) = rest.split_once(" - ")?;
    let (_file, rest) = rest.split_once(" - ")?;
    let (logger, text) = rest.split_once(": ")?;
    (is_of("-: ,", time) && logger.starts_with("flashinfer")).then_some(text)
}

/// `I0318 06:57:13.573000 165 torch/_inductor/codecache.py:2299] [0/0] text`, after `[rank0]:` where there are several
fn of_torch(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("[rank") {
        Some(rest) => rest.split_once("]:")?.1,
        None => line,
    };
    let stamp = line.strip_prefix(['V', 'D', 'I', 'W', 'E', 'C'])?;
    let (date, rest) = stamp.split_once(' ')?;
    let (time, rest) = rest.split_once(' ')?;
    let (file, text) = rest.split_once(']')?;
    let (_, line) = file.rsplit_once(':')?;
    (is_number(date) && is_of(":.", time) && is_number(line)).then(|| text.trim_start_matches(' '))
}

/// `[2026-07-27 08:54:44 TP0] text`
fn of_sglang(line: &str) -> Option<&str> {
    let (stamp, text) = line.strip_prefix('[')?.split_once("] ")?;
    let date = stamp.split(' ').next()?;
    (date.len() == 10 && is_of("-", date)).then(|| of_uvicorn(text).unwrap_or(text))
}

/// `INFO:     text`
fn of_uvicorn(line: &str) -> Option<&str> {
    let (level, text) = line.split_once(':')?;
    ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"].contains(&level).then(|| text.trim_start_matches(' '))
}

/// vLLM tags some lines with the part of the model that is compiled, PyTorch with the frame: `[backbone] `, `[0/0] `.
pub(super) fn without_tag(text: &str) -> &str {
    let tagged = || text.strip_prefix('[')?.split_once("] ");
    match tagged() {
        Some((tag, rest)) if tag.chars().all(|c| c.is_alphanumeric() || "_./-".contains(c)) => rest,
        _ => text,
    }
}

/// What a progress bar of tqdm counted, and how long it ran, once it is at its end:
/// `100%|██████████| 1670/1670 [03:15<00:00,  8.55it/s]`
pub(super) fn finished_bar(text: &str) -> Option<(u64, Duration)> {
    let (_, counts) = text.rsplit_once('|')?;
    let (counts, times) = counts.trim_start().split_once(" [")?;
    let (done, total) = counts.split_once('/')?;
    let (elapsed, _) = times.split_once('<')?;
    let seconds = elapsed
        .split(':')
        .try_fold(0u64, |all, part| Some(all.checked_mul(60)? + u64::from(part.parse::<u32>().ok()?)))?;
    (done == total).then_some((total.parse().ok()?, Duration::from_secs(seconds)))
}

/// Whether Python would print `name` before an exception's text.
pub(super) fn is_exception(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let suffix = ["Error", "Exception", "Fault"].iter().any(|suffix| last.ends_with(suffix));
    suffix && last.starts_with(|c: char| c.is_ascii_uppercase()) && name.split('.').all(is_name)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Digits with some of `marks` among them.
fn is_of(marks: &str, text: &str) -> bool {
    text.contains(|c| marks.contains(c)) && text.chars().all(|c| c.is_ascii_digit() || marks.contains(c))
}
