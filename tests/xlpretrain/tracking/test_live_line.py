"""The console of a run."""

import re

from xlpretrain.tracking.live_line import RunConsole

STEP = {
    "step": 20,
    "train/loss": 2.5,
    "train/lr": 1e-3,
    "train/grad_norm": 0.7,
    "time/tokens_per_second": 1234.5,
    "time/mfu": 0.31,
    "time/step_s": 0.5,
    "time/data_wait_s": 0.01,
}


def test_the_console_prints_a_plain_line_per_step_in_a_log(capsys):
    console = RunConsole(max_steps=100)
    console.log(STEP)
    console.log({**STEP, "step": 30, "valid/loss": 2.0, "valid/perplexity": 7.39, "valid/bits_per_byte": 1.2})
    console.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("step  20/100  20%  loss 2.5000  1,234 tok/s  grad 0.70  lr 1.00e-03  mfu 31%  wait 2.0%")
    assert lines[1] == "step 30: held-out loss 2.0000, perplexity 7.39, 1.200 bits per byte"
    assert re.match(r"step  30/100  30%  \d+ s left  loss", lines[2])
    assert all("\x1b" not in line for line in lines)


def test_an_evaluation_shows_the_metrics_of_a_task(capsys):
    console = RunConsole(max_steps=100)
    console.log({**STEP, "valid/loss": 0.5, "valid/loss/tag": 0.5, "valid/tag_accuracy": 0.9, "valid/f1": 0.625})
    console.close()
    assert capsys.readouterr().out.splitlines()[0] == "step 20: held-out loss 0.5000, tag accuracy 0.900, f1 0.625"
