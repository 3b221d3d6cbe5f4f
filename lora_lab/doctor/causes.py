"""The causes that the doctor knows, likeliest root first, with the remedy of each and the lesson that shows it."""

from dataclasses import dataclass
from typing import NamedTuple


class Cause(NamedTuple):
    """What is wrong in words, what to do next, and the number of the lesson that shows it."""

    says: str
    remedy: str
    lesson: str


# In this order findings are ranked: what is wrong before training, in training, with the base, and in the file.
CAUSES = {
    "not an adapter": Cause(
        "the folder does not hold a whole adapter",
        "Save it again with model.save_pretrained(folder), or copy both files anew.", "0"),
    "pickled weights": Cause(
        "the weights are a pickle, which can run any program when it is loaded, and was not opened",
        "Have whoever made it save it with safe_serialization=True, PEFT's default.", "6"),
    "nothing counted": Cause(
        "no label is left for the loss",
        "Look at one row's labels: -100 must cover the prompt and nothing else. A row that is cut at max_length may "
        "lose its answer.", "3"),
    "labels shifted": Cause(
        "the labels are shifted by one already, and the model shifts them once more",
        "Give labels in the same places as input_ids; transformers' models shift them.", "3"),
    "prompt counted": Cause(
        "the loss counts the prompt as it counts the answer",
        "Set the labels of the prompt to -100 (completion_only_loss or assistant_only_loss in TRL).", "3"),
    "end not learned": Cause(
        "the end of text is masked or missing, so that the model is not taught to stop",
        "End each answer with the tokenizer's end of text and give it a label; pad with another token, or mask by the "
        "attention mask, not by the token.", "3"),
    "prompts differ": Cause(
        "what is asked now is written otherwise than what was trained on",
        "Build both with one function, or with one chat template; compare their first and last tokens.", "3"),
    "float16 gradients": Cause(
        "the trained weights are in float16, in which a gradient scaler does not work",
        "Load the base in bfloat16 or float32, or cast the adapter: p.data = p.data.float() for what trains. "
        "autocast_adapter_dtype=True, PEFT's default, does it.", "3"),
    "gradient cut off": Cause(
        "no gradient reaches the adapter",
        "With gradient checkpointing call model.enable_input_require_grads(), or use use_reentrant=False; see that "
        "model.print_trainable_parameters() is not 0; attach the adapter before the optimizer is made.", "4"),
    "loss of zero": Cause(
        "the loss is 0 from the start",
        "Look at one batch's labels, and at the precision: float16 overflows where bfloat16 does not.", "3"),
    "rate too high": Cause(
        "the training diverged",
        "Divide the learning rate by 3 to 10, or alpha with it; warm up; clip gradients at 1.", "5"),
    "rate too low": Cause(
        "the learning rate is too low for an adapter: it hardly moved",
        "Try 1e-4 to 2e-3 with AdamW at alpha = 2r; an adapter takes about ten times the rate of full training.", "5"),
    "overfitting": Cause(
        "the loss on held-out rows rose while that of training fell",
        "Stop at its lowest point (load_best_model_at_end), train fewer passes, add rows, or lower rank and rate.",
        "0"),
    "loss is flat": Cause(
        "the loss did not fall",
        "See first that one batch can be learned by heart; then the rate, the labels, and what trains.", "5"),
    "other shapes": Cause(
        "the base is another model: its layers have other names or sizes",
        "Load the base that adapter_config.json names under base_model_name_or_path.", "2"),
    "merged twice": Cause(
        "the base has this update in its weights already",
        "Load the base as it was before the merge, or use the merged model without the adapter.", "6"),
    "config edited": Cause(
        "adapter_config.json is not the one that was trained with",
        "Put back lora_alpha, r and use_rslora as they were; to change how loud it is, use set_scale and score it.",
        "5"),
    "other base": Cause(
        "the weights of the base are not those that the adapter was trained beside",
        "Load the same revision and the same rounding; to try another, score it.", "3"),
    "tokens lost": Cause(
        "the tokenizer has tokens for which there are no trained rows",
        "Resize the embeddings, and train the new rows: trainable_token_indices, or modules_to_save.", "2"),
    "other tokenizer": Cause(
        "the tokenizer saved with the adapter reads texts otherwise than the one used here",
        "Load the tokenizer from the adapter's folder.", "6"),
    "not finite": Cause(
        "there are NaN or infinite numbers in the weights",
        "The training diverged or overflowed: take an earlier checkpoint, lower the rate, use bfloat16.", "5"),
    "dead": Cause(
        "A and B are both zero, so that no gradient moves either",
        "Leave init_lora_weights at True: one factor random, the other zero.", "1"),
    "never trained": Cause(
        "B is zero everywhere: the adapter adds nothing",
        "Save after trainer.train(), from the model that was trained; see that the optimizer has its parameters.", "1"),
    "partly trained": Cause(
        "B is still zero in some layers: they were not trained",
        "Look for layers that the loss does not reach, and for parameters frozen after get_peft_model.", "2"),
    "targets missing": Cause(
        "the config names layers that are not in the file",
        "Give target_modules as the model spells them; targets.check() refuses a name that matches nothing.", "2"),
    "exploded": Cause(
        "the update is larger than the weights it corrects",
        "Lower the learning rate or alpha, and train again.", "5"),
    "hardly moved": Cause(
        "B is not zero, and hardly moved",
        "Train longer or at a higher rate: 1e-4 to 2e-3 with AdamW at alpha = 2r.", "5"),
    "embeddings copied": Cause(
        "the file holds the base's embeddings, unchanged or not asked for",
        "Save with save_embedding_layers=False, unless rows of them were trained.", "6"),
    "not servable": Cause(
        "programs that serve adapters refuse this one, or compute something else with it",
        "Merge it before serving, or train without what they refuse.", "6"),
}


@dataclass(frozen=True)
class Finding:
    """One cause, a key of `CAUSES`, and the evidence for it: a number from the files."""

    cause: str
    evidence: str

    @property
    def remedy(self) -> str:
        """What to do next."""
        return CAUSES[self.cause].remedy

    @property
    def lesson(self) -> str:
        """The number of the lesson that shows it."""
        return CAUSES[self.cause].lesson

    def __str__(self) -> str:
        says = CAUSES[self.cause].says
        return f"{says[0].upper()}{says[1:]}: {self.evidence}. {self.remedy} (Lesson {self.lesson})"
