"""What other papers propose, a file each: selectors that remember (greso, pools, adarft),
estimators (dps, bots)."""
