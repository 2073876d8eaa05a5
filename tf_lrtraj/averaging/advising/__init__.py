"""Which average to take: few measured losses, the prediction of all, a recommendation verified.

`plan` decides what is measured, `sweep` names the averages there are to choose from, `measured`
keeps losses as they come, `advice` is what comes out, and `advisor.advise` does the work.
"""
