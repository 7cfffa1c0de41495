#!/usr/bin/env bash
# Reports in a browser: on a phone and on a wide screen, light and dark. Skipped without Chromium.
source "$(dirname "$0")/common.sh" "$@"
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) && "$chromium" --version >/dev/null 2>&1 || { echo "skipped: no Chromium"; exit 77; }

for name in a-run_whose_name_is_longer_than_a_phone_is_wide_and_has_no_place_to_break b; do
  "$BRAID" train "$TINY" "run.dir=$WORK/$name" run.steps=4 eval.interval_steps=2 checkpoint.interval_steps=0 log.tensorboard=false --quiet
done
cat >"$WORK/study.yaml" <<YAML
question: does a question that is much longer than a phone is wide fit it?
config: tiny.yaml
set: [run.steps=4, eval.interval_steps=2, "log.metrics=[hidden/max, hidden/rms, moe/router_entropy]"]
seeds: [1, 2]
axes:
  - name: learning_rate_of_the_optimizer
    variants:
      - {name: low, set: [optimizer.lr=1e-4]}
      - {name: high, set: [optimizer.lr=1e-3]}
YAML
"$BRAID" ablate "$WORK/study.yaml" --dir "$WORK/study" --jobs 2 >"$WORK/out" 2>&1 || { cat "$WORK/out" >&2; fail "the study failed"; }
"$BRAID" report "$WORK"/a-* "$WORK/b" --out "$WORK/runs.html" >/dev/null

python3 - "$WORK" <<'PYTHON'
import html, sys
from pathlib import Path
work = Path(sys.argv[1])
frames = "".join(f'<iframe width={width} height=900 title="{name} {width}" srcdoc="{html.escape((work / name).read_text())}"></iframe>'
                 for name in ("runs.html", "study/report.html") for width in (360, 1400))
probe = """
const channels = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
const light = text => channels(text).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
function look(frame) {
  const page = frame.contentDocument, of = e => frame.contentWindow.getComputedStyle(e), back = of(page.body).backgroundColor;
  const wrong = [], shown = [...page.querySelectorAll("main *")].filter(e => e.getClientRects().length);
  if (page.documentElement.scrollWidth > frame.contentWindow.innerWidth) wrong.push("the page is wider than the screen");
  for (const e of shown) {
    const what = e.tagName + " '" + e.textContent.slice(0, 30) + "'", text = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    if (!e.closest(".scroll, svg") && (e.getBoundingClientRect().right > frame.contentWindow.innerWidth || e.scrollWidth > e.clientWidth + 1 && e.clientWidth))
      wrong.push(what + " reaches out of the screen");
    if (!text) continue;
    const svg = e.closest("svg"), scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(of(e).fontSize) * scale < 10) wrong.push(what + " is smaller than 10 pixels");
    if (contrast(svg ? of(e).fill : of(e).color, back) < 4.5) wrong.push(what + " is too faint");
  }
  const dashes = new Map([...page.querySelectorAll("td svg.key polyline")].map(e => [e.closest("td").textContent.trim()[0], of(e).strokeDasharray]));
  if (dashes.size < 2 || new Set(dashes.values()).size < dashes.size) wrong.push("curves differ by colour alone");
  return frame.title + ", " + shown.length + " elements on " + back + ": " + (wrong.join("; ") || "fine");
}
addEventListener("load", () => document.title = [...document.querySelectorAll("iframe")].map(look).join(" | "));
"""
(work / "frames.html").write_text(f"<!doctype html><title>not looked at</title><script>{probe}</script>{frames}")
PYTHON

for scheme in 0:dark 1:light; do
  timeout 240 "$chromium" --headless --no-sandbox --disable-gpu --user-data-dir="$WORK/browser" --window-size=1500,900 \
    --blink-settings=preferredColorScheme=${scheme%:*} --dump-dom "file://$WORK/frames.html" >"$WORK/dom" 2>"$WORK/err" || { cat "$WORK/err" >&2; fail "the browser ended with $?"; }
  title=$(sed -n 's|.*<title>\(.*\)</title>.*|\1|p' "$WORK/dom" | head -1)
  [ "$(grep -o ': fine' <<<"$title" | wc -l)" = 4 ] || fail "${scheme#*:}: $title"
  backs=${backs:-}$(grep -o 'rgb([^)]*)' <<<"$title" | sort -u)
  pass "${scheme#*:}: $title"
done
[ "$(grep -o 'rgb' <<<"$backs" | wc -l)" = 2 ] && [ "$(grep -o 'rgb([^)]*)' <<<"$backs" | sort -u | wc -l)" = 2 ] || fail "light and dark have the same background: $backs"
echo "$checks passed, 0 failed"
