"""The page that goes with a trained model: what it learned from, what it reaches, its licence.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019: only what the files say.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rtseg.artifact import load_model


def model_card(model: Path, recipe: Path, log: Path) -> str:
    """Markdown for a model file that `rtseg train` wrote.

    Args:
        model: the .onnx, whose contract is read.
        recipe: the TOML it was trained by, quoted whole.
        log: the run's log.jsonl.

    Raises:
        ModelError: the model file cannot be read.
    """
    contract = load_model(str(model)).contract
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    best = max(lines, key=lambda line: float(line["val_miou"] or 0.0))
    facts = contract.facts
    table = "\n".join(
        f"| {name} | {_percent(value)} |"
        for name, value in zip(contract.classes.names, best["val_iou"], strict=True)
    )
    return f"""# {contract.name}

{facts.get("params", 0) / 1e6:.2f} million parameters, {facts.get("gmacs", 0):.1f} GMACs at \
{contract.input_hw[0]}×{contract.input_hw[1]}. Family `{contract.family}`: {facts.get("paper", "")}.

- **Data**: {contract.trained_on}.
- **Result**: {_percent(best["val_miou"])} mIoU on the validation split at step {best["step"]} of \
{lines[-1]["step"]}, averaged weights, single scale.
- **Code**: commit {_commit()}.
- **Licence**: {contract.licence}, weights and code. The data have licences of their own.
- **Meant for**: labelling video of streets, for research and for products that check it in their
  own setting. Not validated for any safety function. Rare and thin things (poles, signs) are its
  weak side, see the table.

| class | IoU |
|---|---|
{table}

## Recipe

```toml
{recipe.read_text().strip()}
```
"""


def _percent(value: Any) -> str:
    return "absent" if value is None else f"{100 * value:.1f} %"


def _commit() -> str:
    """Of the code that is running, if it lies in a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown (not a checkout)"
    return done.stdout.strip()
