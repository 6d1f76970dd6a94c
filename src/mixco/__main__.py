from mixco.cli import main

main()
