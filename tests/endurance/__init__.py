"""Long runs with real processes: `python -m tests.endurance.chaos` and `python -m tests.endurance.load`.

questions  what clients ask, and what each has got: the whole answer to compare, how long it waited, why it failed
memory     how much memory processes take, against what they were given
chaos      a fault every few seconds while clients compare every answer with the undisturbed one
load       many clients at once, some of which stall, read slowly or vanish
tables     what came of it, as Markdown
"""
