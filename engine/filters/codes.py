"""The numbers that `engine.filters.columnar` and the compiled `engine.filters.kernel` say things with.

Tables are of ``int64``, one line after another:

- nodes (of a tree of names; 0 is the root): first child, next sibling (-1 for none), address and size of the
  name, leaf (-1 for none);
- rules: operator and two operands;
- conditions: whether only the reference can tell, leaf, first rule, number of rules;
- branches: first condition, number of conditions, first group, number of groups.
"""

from __future__ import annotations

NODE_FIELDS, RULE_FIELDS, CONDITION_FIELDS, BRANCH_FIELDS = 5, 3, 4, 4

#: Verdicts.
NO, YES, ASK = 0, 1, 2

#: Kinds of tokens. Hard ones need the reference to be compared: escapes, and numbers that may not be exact.
MISSING, NULL, TRUE, FALSE, NUMBER, NUMBER_HARD, STRING, STRING_HARD = range(8)

#: Operators. TEXT, PREFIX and SUFFIX have address and size of bytes; so have those of FOLDED_..., which are lower
#: case and ASCII. EQUAL and RANGE have the lowest and highest number included (`engine.filters.columnar.ordered`),
#: WORD a kind of token, ANYTHING_BUT and WILDCARD first rule and number of rules (of WILDCARD the parts, as TEXT).
#: OTHER is any operator on strings that only the reference knows.
EXISTS, ABSENT, WORD, EQUAL, RANGE, ANYTHING_BUT, OTHER = range(7)
TEXT, PREFIX, SUFFIX, FOLDED_TEXT, FOLDED_PREFIX, FOLDED_SUFFIX, WILDCARD = range(7, 14)
