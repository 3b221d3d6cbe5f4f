"""Whether a merge is safe to ship: a merged model against the unmerged one, on your own prompts."""

from .auditor import Audit, audit
