//! The report as one HTML file that needs nothing else.

use std::fmt::Write;

use super::plots;
use super::svg::escape;
use super::table::rows;
use super::{mebibytes, number, percent, relation, words};
use crate::ParityReport;

const STYLE: &str = "
:root{--ground:#fff;--text:#1b1f24;--soft:#5b6570;--line:#d9dee4;--card:#f6f8fa;--good:#1a7f37;--bad:#c4320a}
@media(prefers-color-scheme:dark){:root{--ground:#14171a;--text:#e6e9ec;--soft:#9aa4ae;--line:#343b42;--card:#1d2126;--good:#3fb950;--bad:#ff7b54}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:34px 0 10px}
.soft{color:var(--soft)}code{font:13px ui-monospace,monospace}
.verdict{display:inline-block;padding:2px 12px;border-radius:14px;color:#fff;font-weight:600;background:var(--good)}.verdict.bad{background:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.tile b{display:block;font-size:20px}.tile span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.ok{color:var(--good);font-weight:600}.fail{color:var(--bad);font-weight:600}
ul.findings{padding-left:20px}ul.findings li{margin:6px 0;overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(520px,100%),1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 10px}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg text.title{font-size:12px;fill:var(--text)}svg text.small{font-size:9px;fill:var(--text);paint-order:stroke;stroke:var(--card);stroke-width:3px}
svg .grid{stroke:var(--line)}svg .tick{stroke:var(--soft)}svg .divider{stroke:var(--line);stroke-dasharray:2 3}svg .frame{fill:none;stroke:var(--soft);stroke-opacity:.5}
figcaption{font-size:13px}figcaption p{margin:4px 0 2px;color:var(--soft)}.key{margin-right:14px;white-space:nowrap}.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:5px}
details summary{cursor:pointer;font-weight:600;margin:8px 0}
";

impl ParityReport {
    /// The report as a self-contained HTML page: no script, no font, no image from elsewhere.
    pub fn to_html(&self) -> String {
        let mut out = String::with_capacity(1 << 16);
        self.write_html(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_html(&self, out: &mut String) -> std::fmt::Result {
        let (class, verdict) = match self.passed {
            true => ("", "within its thresholds"),
            false => (" bad", "outside its thresholds"),
        };
        let name = escape(&self.candidate.name);
        write!(
            out,
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' \
             content='width=device-width,initial-scale=1'><title>Parity of {name}</title><style>{STYLE}</style></head>\
             <body><main><h1>Parity of <code>{name}</code></h1><p><span class='verdict{class}'>{verdict}</span></p>\
             <p class='soft'>Against <code>{}</code> in float. {}</p>",
            escape(&self.reference.name),
            escape(&self.candidate.description)
        )?;
        self.tiles(out)?;
        if !self.findings.is_empty() {
            out.push_str("<h2>Findings</h2><ul class='findings'>");
            for finding in &self.findings {
                write!(out, "<li><b>{}</b>: {}</li>", escape(&finding.scope), escape(&finding.message))?;
            }
            out.push_str("</ul>");
        }
        self.comparisons(out)?;
        let figures = [
            plots::kl_over_positions(self),
            plots::kl_distribution(self),
            plots::layers(self),
            plots::states(self),
            plots::calibration(self),
            plots::tensors(self),
        ];
        let figures: String = figures.into_iter().flatten().collect();
        if !figures.is_empty() {
            write!(out, "<h2>Plots</h2><div class='plots'>{figures}</div>")?;
        }
        self.check_table(out)?;
        self.consistency_table(out)?;
        self.tensor_table(out)?;
        write!(out, "<p class='soft'>{}", escape(&self.tool))?;
        if let Some(hash) = &self.reference.hash {
            write!(out, " · source {}", escape(hash.get(..16).unwrap_or(hash)))?;
        }
        for (stage, seconds) in &self.seconds {
            write!(out, " · {} {seconds:.1} s", escape(stage))?;
        }
        out.push_str("</p></main></body></html>\n");
        Ok(())
    }

    fn tiles(&self, out: &mut String) -> std::fmt::Result {
        let mut tiles: Vec<(String, &str)> = Vec::new();
        if let Some(bytes) = self.candidate.size_bytes {
            tiles.push((mebibytes(bytes), "weight files"));
        }
        if let Some(weights) = &self.weights {
            tiles.push((format!("{:.3}", weights.bits_per_weight), "bits per weight"));
        }
        if let Some(c) = &self.implementation {
            tiles.push((number(c.kl.mean), "mean KL, implementation"));
        }
        if let Some(c) = self.total.as_ref().or(self.conversion.as_ref()) {
            tiles.push((number(c.kl.mean), "mean KL, total"));
            tiles.push((percent(c.top1_agreement), "top-1 agreement"));
        }
        if let Some(p) = &self.perplexity {
            tiles.push((format!("{:+.2} %", 100.0 * p.change()), "perplexity"));
        }
        out.push_str("<div class='tiles'>");
        for (value, name) in tiles {
            write!(out, "<div class='tile'><b>{}</b><span>{name}</span></div>", escape(&value))?;
        }
        out.push_str("</div>");
        Ok(())
    }

    fn comparisons(&self, out: &mut String) -> std::fmt::Result {
        let columns = [
            ("implementation", &self.implementation),
            ("conversion", &self.conversion),
            ("total", &self.total),
        ];
        let columns: Vec<_> = columns.into_iter().filter_map(|(n, c)| c.as_ref().map(|c| (n, c))).collect();
        if columns.is_empty() {
            return Ok(());
        }
        out.push_str("<h2>Logits</h2><div class='scroll'><table><tr><th></th>");
        for (name, _) in &columns {
            write!(out, "<th class='n'>{name}</th>")?;
        }
        out.push_str("</tr>");
        for (name, value) in rows() {
            write!(out, "<tr><td>{name}</td>")?;
            for (_, column) in &columns {
                write!(out, "<td class='n'>{}</td>", escape(&value(column)))?;
            }
            out.push_str("</tr>");
        }
        out.push_str("</table></div><p class='soft'>Implementation: executed, against its own weights in float. Conversion: its weights in float, against the original. Total: executed, against the original. KL in nats.</p>");
        if let Some(p) = &self.perplexity {
            write!(
                out,
                "<p>Perplexity over {} tokens: float {:.4}, candidate {:.4} ({:+.2} %).</p>",
                p.tokens,
                p.reference,
                p.candidate.unwrap_or(p.own_float),
                100.0 * p.change()
            )?;
        }
        Ok(())
    }

    fn check_table(&self, out: &mut String) -> std::fmt::Result {
        out.push_str("<h2>Checks</h2><div class='scroll'><table><tr><th></th><th>check</th><th class='n'>value</th><th class='n'>limit</th><th>where the limit comes from</th></tr>");
        for check in &self.checks {
            let (class, word) = if check.passed { ("ok", "ok") } else { ("fail", "FAIL") };
            write!(
                out,
                "<tr><td class='{class}'>{word}</td><td>{}</td><td class='n'>{}</td><td class='n'>{} {}</td><td class='soft'>{}</td></tr>",
                escape(&words(&check.name)),
                number(check.value),
                relation(check),
                number(check.limit),
                escape(&check.because)
            )?;
        }
        out.push_str("</table></div>");
        Ok(())
    }

    fn consistency_table(&self, out: &mut String) -> std::fmt::Result {
        if self.consistency.is_empty() && self.greedy.is_empty() {
            return Ok(());
        }
        out.push_str("<h2>The same tokens in other ways</h2><div class='scroll'><table><tr><th>way</th><th class='n'>positions</th><th class='n'>mean KL</th><th class='n'>largest difference</th><th>bits</th></tr>");
        for way in &self.consistency {
            write!(
                out,
                "<tr><td>{}</td><td class='n'>{}</td><td class='n'>{}</td><td class='n'>{}</td><td>{}</td></tr>",
                escape(&way.way),
                way.positions,
                number(way.mean_kl),
                number(way.max_abs_difference),
                if way.bit_equal { "equal" } else { "differ" }
            )?;
        }
        out.push_str("</table></div>");
        for greedy in &self.greedy {
            write!(
                out,
                "<p>Greedy continuation of <code>{}</code>: {} of {} tokens are those that its own weights in float \
                 choose; it follows the float model's own for {} tokens.</p>",
                escape(&greedy.prompt),
                greedy.same_as_own_float,
                greedy.tokens,
                greedy.same_as_reference
            )?;
        }
        Ok(())
    }

    fn tensor_table(&self, out: &mut String) -> std::fmt::Result {
        let Some(weights) = &self.weights else { return Ok(()) };
        let open = if weights.failed().next().is_some() { " open" } else { "" };
        write!(
            out,
            "<h2>Tensors</h2><details{open}><summary>{} tensors</summary><div class='scroll'><table><tr><th></th>\
             <th>tensor</th><th>stored as</th><th class='n'>bits</th><th class='n'>relative error</th>\
             <th class='n'>RMS in steps</th><th class='n'>of what is explained</th><th>cause</th></tr>",
            weights.tensors.len()
        )?;
        let (bad, good): (Vec<_>, Vec<_>) = weights.tensors.iter().partition(|tensor| !tensor.passed);
        for tensor in bad.into_iter().chain(good) {
            let (class, word) = if tensor.passed { ("ok", "ok") } else { ("fail", "FAIL") };
            write!(
                out,
                "<tr><td class='{class}'>{word}</td><td><code>{}</code></td><td>{}</td><td class='n'>{:.3}</td>\
                 <td class='n'>{}</td><td class='n'>{}</td><td class='n'>{}</td><td>{}</td></tr>",
                escape(&tensor.name),
                escape(&tensor.storage),
                tensor.bits_per_weight,
                number(tensor.relative_error),
                tensor.rms_steps.map_or(String::new(), number),
                number(tensor.excess),
                escape(tensor.cause.as_deref().unwrap_or(""))
            )?;
        }
        out.push_str("</table></div></details>");
        Ok(())
    }
}
