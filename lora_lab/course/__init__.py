"""The course around the tools: questions, exercises, explorers, the learners' copies, a class. No tool imports it."""
