"""AWS SAM and CloudFormation templates as a source of configuration.

`load` reads a template into an `engine.config.Config`, with a list of what headrace cannot honour and one of what
it leaves aside without harm. Nothing is deployed and no AWS service is called; the rest of a template is not
evaluated.
"""

from __future__ import annotations

from engine.sam.template import Template, is_template, load

__all__ = ["Template", "is_template", "load"]
