"""A recipe trained on any number of processes: `accelerate launch -m lora_lab.finetune recipe.yaml [--resume]`.

The recipe, a small YAML file, says what is trained on which rows; `recipes` names every key. `training` trains by it:
`finetune.train(recipes.read("recipe.yaml"))`.

    output/metrics.jsonl    one entry of `trainer.state.log_history` on each line
    output/rows.sha256      of the rows, so that a resumed run goes on with the same
    output/checkpoint-20/   adapter, optimizer, schedule and random numbers, every save_steps
    output/adapter/         what `PeftModel.from_pretrained` loads, there when the training is complete
"""

from .training import order, train
